#!/usr/bin/env bash
# The client as a SLURM job, for sites whose login nodes end long processes:
#
#   sbatch deploy/slurm/job.sh SOURCE TARGET --model M --cluster deploy/slurm/cluster.toml
#
# Arguments are those of isochunk run. Minutes before its wall time the job goes back to the queue
# and, when its turn comes again, goes on with what is missing.
#SBATCH --job-name=isochunk
#SBATCH --output=isochunk-%j.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
set -m  # or the client, in the background, would not hear SIGINT

isochunk run "$@" &
client=$!

go_on_later() {
    kill -INT "$client"  # it closes its workers
    wait "$client"
    scontrol requeue "$SLURM_JOB_ID" || echo "Submit the same again: it goes on with what is missing."
    exit 1
}
trap go_on_later USR1

wait "$client"

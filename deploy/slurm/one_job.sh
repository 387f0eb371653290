#!/usr/bin/env bash
# Scheduler, GPU workers and client in one job of one node or several, for sites where jobs may not
# submit jobs:
#
#   python examples/certificates.py ~/isochunk-tls      # once, and again when they are a year old
#   DASK_CONFIG=~/isochunk-tls sbatch --nodes=2 deploy/slurm/one_job.sh SOURCE TARGET --model M
#
# Arguments are those of isochunk run. Minutes before its wall time the job goes back to the queue
# and, when its turn comes again, goes on with what is missing.
#SBATCH --job-name=isochunk
#SBATCH --output=isochunk-%j.log
#SBATCH --open-mode=append
#SBATCH --time=04:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
set -m  # or the client, in the background, would not hear SIGINT

# Others may log in to the nodes: whoever reaches a scheduler without certificates runs code as you.
: "${DASK_CONFIG:?is not set; say where python examples/certificates.py FOLDER has put certificates}"

# Jobs that share a node need ports of their own.
address="tls://$(hostname):$((20000 + SLURM_JOB_ID % 10000))"
dask scheduler --port "${address##*:}" --no-dashboard &
scheduler=$!

# One process on each GPU of each node. Memory is the business of isochunk's plan: Dask would pause
# and kill workers by other measures.
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    dask cuda worker "$address" --memory-limit 0 --device-memory-limit 0 --no-dashboard \
    --death-timeout 120 --local-directory "${TMPDIR:-/tmp}" &

isochunk run "$@" --scheduler "$address" &
client=$!

end() {
    kill -INT "$scheduler"  # it closes the workers
    wait
    exit "$1"
}

go_on_later() {
    kill -INT "$client"
    wait "$client"
    scontrol requeue "$SLURM_JOB_ID" || echo "Submit the same again: it goes on with what is missing."
    end 1
}
trap go_on_later USR1

wait "$client"
end $?

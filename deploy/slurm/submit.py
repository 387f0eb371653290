"""Convert several volumes, one after the other, on the same SLURM workers.

    python deploy/slurm/submit.py deploy/slurm/cluster.toml FIRST.toml SECOND.toml ...

The files after the first are jobs as ``isochunk run --config`` takes them. Give the same command
again after whatever happened: what is done is not done again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from distributed import Client

import isochunk
from isochunk.api import PATIENCE
from isochunk.cluster.spec import read_cluster
from isochunk.cluster.start import started
from isochunk.core.job import Job, read_toml


def main(cluster_file: str, job_files: list[str]) -> int:
    """Plan all, then run all; return 0 if every volume is complete."""
    spec = read_cluster(cluster_file)
    plans = [isochunk.plan(Job.from_mapping(read_toml(path))) for path in job_files]
    patience = replace(PATIENCE, workers_s=spec.wait_s or PATIENCE.workers_s)
    complete = True
    # A dask_jobqueue.SLURMCluster with the file's options, whose workers are kept at their number.
    with started(spec) as cluster, Client(cluster, set_as_default=False) as client:
        for plan in plans:
            report = isochunk.run(plan, client, patience=patience)
            print(json.dumps({"target": plan.job.target, **report.summary()}))
            complete &= report.complete
    return 0 if complete else 1


if __name__ == "__main__":
    cluster_file, *job_files = sys.argv[1:]
    sys.exit(main(cluster_file, job_files))

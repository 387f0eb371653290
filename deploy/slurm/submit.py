"""Convert several volumes, one after the other, on the same SLURM workers.

    python deploy/slurm/submit.py deploy/slurm/cluster.toml FIRST.toml SECOND.toml ...

The files after the first are jobs as ``isochunk run --config`` takes them. Give the same command
again after whatever happened: what is done is not done again.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import isochunk


def main(cluster_file: str, job_files: list[str]) -> int:
    """Plan all, then run all; return 0 if every volume is complete."""
    tables = [tomllib.loads(Path(path).read_text()) for path in job_files]
    plans = [isochunk.plan(isochunk.Job.from_mapping(table)) for table in tables]
    complete = True
    # A dask_jobqueue.SLURMCluster with the file's options, whose workers are kept at their number.
    with isochunk.start_cluster(cluster_file) as client:
        for plan in plans:
            report = isochunk.run(plan, client)
            print(json.dumps({"target": plan.job.target, **report.summary()}))
            complete &= report.complete
    return 0 if complete else 1


if __name__ == "__main__":
    cluster_file, *job_files = sys.argv[1:]
    sys.exit(main(cluster_file, job_files))

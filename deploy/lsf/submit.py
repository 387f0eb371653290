"""Bucket to bucket on LSF, from a host that may submit jobs: submit.py SOURCE TARGET MODEL."""

import sys
from pathlib import Path

import isochunk

if __name__ == "__main__":
    source, target, model = sys.argv[1:]
    cluster = Path(__file__).with_name("cluster.toml")
    job = isochunk.Job(
        source=source, target=target, model=model, cluster=str(cluster), memory="24GiB"
    )
    plan = isochunk.plan(job)
    print(plan.summary())
    report = isochunk.run(plan)
    print(report.summary())
    sys.exit(not (report.complete and isochunk.audit(target).complete))

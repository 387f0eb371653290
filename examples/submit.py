"""Bucket to bucket on a Dask cluster: submit.py SCHEDULER SOURCE TARGET."""

import sys

from distributed import Client

import isochunk

if __name__ == "__main__":
    scheduler, source, target = sys.argv[1:]
    job = isochunk.Job(source=source, target=target, model="srunet-z4")
    plan = isochunk.plan(job)
    print(plan.summary())
    with Client(scheduler) as client:
        print(isochunk.run(plan, client).summary())
    sys.exit(not isochunk.audit(target).complete)

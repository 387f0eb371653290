"""Bucket to bucket on a DaskCluster: submit.py SCHEDULER SOURCE TARGET MODEL."""

import sys

import isochunk

if __name__ == "__main__":
    scheduler, source, target, model = sys.argv[1:]
    job = isochunk.Job(
        source=source, target=target, model=model, scheduler=scheduler, memory="20GiB"
    )
    plan = isochunk.plan(job)
    print(plan.summary())
    report = isochunk.run(plan)
    print(report.summary())
    sys.exit(not (report.complete and isochunk.audit(target).complete))

"""Bucket to bucket on EC2 or Compute Engine: submit.py aws.toml SOURCE TARGET MODEL."""

import sys

import isochunk

if __name__ == "__main__":
    cluster, source, target, model = sys.argv[1:]
    job = isochunk.Job(source=source, target=target, model=model, cluster=cluster, memory="12GiB")
    plan = isochunk.plan(job)
    print(plan.summary())
    report = isochunk.run(plan)
    print(report.summary())
    sys.exit(not (report.complete and isochunk.audit(target).complete))

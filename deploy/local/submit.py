"""A job on the processors of this machine: submit.py CLUSTER.toml SOURCE TARGET MODEL."""

import sys

import isochunk

if __name__ == "__main__":
    cluster, source, target, model = sys.argv[1:]
    job = isochunk.Job(source=source, target=target, model=model, cluster=cluster, memory="4GiB")
    plan = isochunk.plan(job)
    print(plan.summary())
    report = isochunk.run(plan)
    print(report.summary())
    sys.exit(not (report.complete and isochunk.audit(target).complete))

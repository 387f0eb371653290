"""A job inside a container, on its GPUs if it has any: submit.py SOURCE TARGET MODEL."""

import sys

import torch

import isochunk

if __name__ == "__main__":
    source, target, model = sys.argv[1:]
    cluster = "cuda" if torch.cuda.is_available() else "local"
    job = isochunk.Job(source=source, target=target, model=model, cluster=cluster)
    plan = isochunk.plan(job)
    print(plan.summary())
    report = isochunk.run(plan)
    print(report.summary())
    sys.exit(not (report.complete and isochunk.audit(target).complete))

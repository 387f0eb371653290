"""Dask: the only room that knows it.

Read ``spec`` for what a cluster file says, ``start`` and ``replace`` for the workers, ``backend``
for how they run blocks, ``audit`` for how they read them again, ``placement`` for which worker gets
the next task, ``window`` for tasks in flight and those that go wrong, ``plugin`` for what a worker
holds open.
"""

"""Dask: the only room that knows it.

Read ``spec`` for what a cluster file says, ``start`` and ``replace`` for the workers, ``backend``
for how they run blocks, ``placement`` for which worker gets the next task, ``window`` for tasks in
flight and those that go wrong.
"""

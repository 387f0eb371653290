"""Volumes and objects, and the URLs that lead to them.

The only room that knows tensorstore and cloud-volume; it knows nothing of models, plans and runs.
Read ``volume`` for what the others see, ``url`` and ``access`` for how a place is reached,
``objects``, ``source`` and ``target`` for reading and writing, ``open`` for the way in. ``keys``,
``arrays``, ``ome`` and ``precomputed`` are the formats: pure.
"""

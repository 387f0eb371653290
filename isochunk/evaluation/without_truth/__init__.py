"""Models judged on a volume that is anisotropic itself, where nobody knows what should be there.

Read ``judge`` first, then what it calls in this order: ``config``, ``sampling`` (which boxes are
read), ``candidates`` (models made ready), the tests ``lateral``, ``held_out`` and ``spectrum``,
``results``, and what is written of them, ``tables`` and ``page``. How far the output is from the
input is measured as in the report of a run, by ``isochunk.core.consistency``.

Figures against an isotropic truth are one floor up.
"""

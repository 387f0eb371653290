"""How well models restore a volume that is known: degrade it, restore it, compare.

Read ``evaluate`` first, which is the whole way, then what it calls in this order: ``config``,
``ground_truth`` (open, average, degrade), ``restore`` (interpolations, networks, predictions made
elsewhere) and ``baselines`` (published methods), ``compare`` with ``metrics``, ``spectra`` and
``noise``, ``results``, and what is written of them, ``tables`` and ``page`` with its
``pictures``. ``without_truth`` is the same for a volume that nobody knows in full.

Figures of a finished evaluation live here. The validation figures of a training run do not (see
``isochunk.train``), nor does any way to restore a volume for its own sake.
"""

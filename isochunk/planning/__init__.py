"""A job turned into blocks, before anything happens.

Pure, but for the bounded sample that ``intensity`` reads. No backend, no record. Read ``block``,
``layout`` and ``plan`` for what a plan is, ``make``, ``blocks`` and ``tiles`` for how it comes
about.
"""

"""How well models restore a volume that is known.

The way goes through ``evaluate``: open the truth, degrade it (``truth``), restore it with each
model and with published methods (``baselines``), compare (``metrics``, ``spectra``, ``noise``), and
write what was found (``results``, ``page``). Nothing here is needed to convert a volume.
"""

"""How well models restore a volume that is known.

Read ``truth``, ``metrics``, ``evaluate``, ``results``; ``baselines`` holds published methods.
"""

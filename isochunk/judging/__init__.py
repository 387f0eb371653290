"""Judging restored volumes: figures, pictures, and published methods to compare with."""

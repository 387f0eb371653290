"""Volumes in neuroglancer: states and links, local files served, predictions on demand."""

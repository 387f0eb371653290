"""Volumes in neuroglancer: links, local files, predictions on demand."""

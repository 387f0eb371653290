"""Packages of the BioImage Model Zoo (bioimage.io) as networks of users.

``package`` opens one and checks its files, ``tensors`` says what its description means for a
volume, ``packaged`` is the network inside such a description, ``weights`` loads it, ``open`` makes
a user's model of all that. The zoo's own library parses and validates; tiles are isochunk's own.
``isochunk.models.packing`` writes packages.
"""

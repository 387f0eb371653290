"""Volumes that microscopes and analysis programs leave in files: TIFF, HDF5 and MRC; reading only.

Read ``kinds`` for how a file is recognised and refused, ``numbering`` for what the names of
sections say, ``raw`` for voxels that lie uncompressed in a file. ``tiff``, ``hdf5`` and ``mrc``
open one format each, through tifffile, h5py and mrcfile (``isochunk[files]``), and are imported
only then.
"""

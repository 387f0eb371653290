"""Super-resolution by sparse codes over a learned dictionary, the baseline of Heinrich's Table 3.

Veeraraghavan et al. 2010 (CVPR, p. 1767) restore electron microscopy along z by writing every patch
as a sum of few atoms; Heinrich et al. 2017 compare their networks with it. A dictionary
is learned on coarse and fine patches joined, so that one code stands for both; a coarse patch is
coded with the coarse parts of the atoms, and the fine parts are summed with the same code.
Overlapping patches are averaged.

The papers leave open, and here it is chosen: patches are what cubic interpolation leaves over (so
an empty code is cubic), coarse patches are scaled to unit length before they are coded, so lambda
means the same at any contrast, and the fine parts are fitted once more, by ridge regression, to the
codes that coarse patches get alone (as in Zeyde et al. 2010, LNCS 6920:711), since fine voxels
help no code when a volume is restored.
"""

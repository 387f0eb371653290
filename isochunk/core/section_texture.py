"""Sections that are blurred beyond use, or drowned in noise: their neighbours have other texture.

Against the contrast of the same section, so that a gain changes nothing. Blur counts where it
reaches structures as large as sections are thick, which networks restore; finer detail comes and
goes with resampling and focus. Noise counts where it is stronger than what it covers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from isochunk.core.robust import median_around, robust_spread
from isochunk.core.section_profile import SectionProfile

BESIDE = 4
"""Sections on either side with which one is compared."""
BLURRED = 0.7
"""Relief of means of pixels, over that beside, below which a section is blurred."""
NOISIER = 2.0
"""Roughness, over that beside, above which a section has other noise."""
DROWNED = math.sqrt(2)
"""Roughness over contrast above which noise is stronger than structures: steps have twice its
variance."""
CERTAIN = 5.0
"""Deviations by which either must differ from what is usual."""


def blurred_and_noisy(used: Sequence[SectionProfile]) -> dict[int, str]:
    """Find sections that are blurred or noisy and those beside are not.

    Args:
        used: sections with tissue, by rising z.

    Returns:
        Why, by z.
    """
    numbers = np.array([(p.contrast, p.relief, p.roughness) for p in used])
    numbers[numbers <= 0] = math.nan
    contrast, relief, roughness = np.log(numbers).T
    found = {}
    for texture, least, most in (
        (relief - contrast, BLURRED, math.inf),
        (roughness - contrast, 0.0, NOISIER),
    ):
        change = texture - median_around(texture, BESIDE)
        odd = np.abs(change) > CERTAIN * robust_spread(change)
        share = np.exp(change)
        for i in np.flatnonzero(odd & (share < least)).tolist():
            found[used[i].z] = f"blurred: {share[i]:.0%} of the detail beside it"
        drowned = np.exp(texture) > DROWNED
        for i in np.flatnonzero(odd & (share > most) & drowned).tolist():
            found[used[i].z] = f"noise: {share[i]:.1f} times as rough as those beside it"
    return found

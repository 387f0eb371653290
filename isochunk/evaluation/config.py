"""What is evaluated, on what, and how: the fields are the options of ``isochunk evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from isochunk.core.degradation import Degradation
from isochunk.core.geometry import Triple
from isochunk.core.job import AxialPlane, Device, Precision
from isochunk.core.text_forms import BoxField, RatioField, ShapeField, WindowField

Baseline: TypeAlias = Literal[
    "a2i", "diffusion", "dictionary", "pssr", "siren", "srmd", "stitched", "swinir"
]
"""Published methods, see :mod:`isochunk.evaluation.baselines`."""

NO_AVERAGE: Triple = (1, 1, 1)


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """An evaluation. Boxes are in voxels of the ground truth, averaged if that is asked for."""

    truth: str
    """URL of an isotropic volume that no evaluated model was trained on."""
    models: tuple[str, ...] = ()
    """Models as ``--model`` takes them, besides the interpolations."""
    predictions: tuple[str, ...] = ()
    """URLs of volumes on the truth's grid that were restored elsewhere."""
    references: tuple[Baseline, ...] = ()
    """Published methods: ``a2i``, ``diffusion``, ``pssr``, ``srmd`` and ``swinir`` are small
    networks that come with isochunk, ``dictionary`` and ``siren`` are learnt or fitted on the spot,
    ``stitched`` is the pssr model's tiles joined with blurred seams, as its authors do."""
    precisions: tuple[Precision, ...] = ()
    """Arithmetic in which networks are evaluated once more, besides fp32."""
    learn_from: str | None = None
    """URL of the isotropic volume that a dictionary is learnt from."""
    factor: RatioField = Fraction(4)
    """Truth voxels that become one section: any number of at least 1 that the models take. For
    models that refine y and x, truth voxels that become one pixel, along both."""
    degradation: Degradation = "avg"
    """How sections are made of them: ``avg`` is the mean over each, ``skip`` its first voxel."""
    plane: AxialPlane | None = None
    """Slices that axial models run on, ``xz+yz`` for the mean of both; default: each one's own."""
    average: ShapeField = NO_AVERAGE
    """Voxels Z,Y,X that are averaged to one voxel of the truth first, against noise."""
    window: WindowField | None = None
    """Stored values LOW,HIGH that become black and white, or ``auto`` to measure them; default:
    uint8 and uint16 are used as they are."""
    sections: str | None = None
    """Section table of the truth, or ``auto`` to inspect it; none of what is evaluated may be
    lost."""
    box: BoxField | None = None
    """Part of the truth, z0:z1,y0:y1,x0:x1; default: all of it."""
    background: BoxField | None = None
    """Part of the truth without signal, for SNR; without it there is none."""
    block: Triple = (128, 128, 128)
    """Voxels predicted at a time; the figures do not depend on it."""
    device: Device = "auto"
    """Where networks run."""
    trust: bool = False
    """Accept models that run code of their own."""
    consistent: bool = False
    """Evaluate models once more, made consistent with their input as ``run --consistent`` does."""
    report: str | None = None
    """Folder for ``evaluation.json``, ``evaluation.md`` and ``index.html``; none by default."""

"""What is judged without a truth, and how: the fields are options of ``isochunk evaluate``."""

from __future__ import annotations

from dataclasses import dataclass

from isochunk.core.degradation import Degradation
from isochunk.core.geometry import Triple
from isochunk.core.job import AxialPlane, Device
from isochunk.core.text_forms import BoxField, RatioField, WindowField


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """An evaluation without a truth. Boxes are in voxels of the source."""

    source: str
    """URL of an anisotropic volume."""
    models: tuple[str, ...] = ()
    """Models as ``--model`` takes them, besides linear and cubic."""
    factor: RatioField | None = None
    """Target voxels per section; default: as isotropic voxels need."""
    degradation: Degradation | None = None
    """How sections came about; default: what the models were made for, else ``avg``."""
    plane: AxialPlane | None = None
    """Slices that axial models run on, ``xz+yz`` for the mean of both; default: each one's own."""
    window: WindowField | None = None
    """Stored values LOW,HIGH of the source that become black and white, or ``auto`` to measure
    them; default: uint8 and uint16 are used as they are."""
    sections: str | None = None
    """Section table of the source, or ``auto`` to inspect it first; default: sections are used as
    they are stored."""
    box: BoxField | None = None
    """Part of the source that is judged; default: some boxes, drawn with the seed."""
    samples: int = 4
    """Boxes that are drawn."""
    seed: int = 0
    """Of the draw: the same seed draws the same boxes."""
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

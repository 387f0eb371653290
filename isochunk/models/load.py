"""What ``--model`` takes: names, checkpoint folders, and networks that users bring."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from isochunk.core.consistency import require_consistent
from isochunk.core.geometry import Factor, Triple, triple
from isochunk.core.job import Precision
from isochunk.core.limits import COST_TILE, DEFAULT_TILE, WORKSPACE
from isochunk.core.option_names import option
from isochunk.core.spec import Intensity, ModelSpec, Plane
from isochunk.core.tile_costs import TileCosts
from isochunk.errors import ModelError
from isochunk.models.checkpoint import MODEL_FILE, load_module, read_spec
from isochunk.models.interface import Predictor
from isochunk.models.interpolation import INTERPOLATIONS, Interpolation, interpolation_spec
from isochunk.models.threads import choose_threads
from isochunk.models.zoo.package import is_package

if TYPE_CHECKING:
    import torch

    from isochunk.models.tiling import Engine
    from isochunk.models.user_model import UserModel

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "shipped"
"""Checkpoints that come with isochunk to restore volumes with, one folder each."""
BASELINES = Path(__file__).parent / "baselines"
"""Checkpoints of published networks that come with isochunk to compare with, one folder each."""

RETIRED: Mapping[str, str] = {
    "srunet-z4-robust": "niiv-z2-10-robust",
    "srunet-z4-self": "srunet-z4",
    "srunet-z4-small": "fsrcnn-z4",
    "srunet-z8-skip": "anyz-z2-10-sample",
}
"""Names of checkpoints that isochunk shipped once, and which one takes each one's place."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a model is made ready in one process."""

    factor: Factor
    """Target voxels per source voxel."""
    intensity: Intensity = field(default_factory=Intensity)
    """What stored values mean to a network."""
    dtype: str = "uint8"
    """numpy name of the source's voxel type."""
    device: str = "auto"
    """Where networks run, as :func:`device_of` takes it; auto takes a GPU if there is one."""
    precision: Precision = "fp32"
    """Number format of weights and layers."""
    tile: Triple = DEFAULT_TILE
    """Target voxels a network computes at a time."""
    trust: bool = False
    """The user allowed the model to run code of its own."""
    allow_inexact: bool = False
    """The user accepts seams."""
    consistent: bool = False
    """The answer is made consistent with the input: sections made again of it are those read."""
    plane: Plane | None = None
    """Slices that an axial network runs on; None for the model's own."""
    known: ModelSpec | None = None
    """What this torch found of the model when it was examined, which takes seconds; if it is the
    same model, only what runs it is made."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What is known of a model before it runs."""

    spec: ModelSpec
    """Its factor not yet resolved."""
    engine: Callable[[ModelSpec], Engine] | None = None
    """Returns what runs it, given its spec with factor and plane fixed; None for interpolations."""

    @property
    def examined_by(self) -> str:
        """Version of torch; empty for interpolations, which need none."""
        return "" if self.engine is None else version("torch")

    def costs(self, spec: ModelSpec, precision: Precision) -> TileCosts | None:
        """Return what tiles cost; None for interpolations, which need no tiles.

        Args:
            spec: the spec with factor and plane fixed.
            precision: number format of weights and layers.
        """
        if self.engine is None:
            return None
        from isochunk.models.predictor import DTYPES
        from isochunk.models.tile_walk import tile_costs

        walked = tile_costs(self.engine(spec), spec, DTYPES[precision])
        if walked is not None:
            return walked
        rim = triple(2 * h * r for h, r in zip(spec.halo, spec.resolved_factor, strict=True))
        # What was measured holds the halo of a usual tile already.
        grown = math.prod(1 + 2 * h / n for h, n in zip(spec.halo, COST_TILE, strict=True))
        size = spec.bytes_per_voxel / WORKSPACE / grown
        return TileCosts.padded(spec.macs_per_voxel, size, size / 4, rim)


def describe(name: str, *, trust: bool = False) -> ModelSpec:
    """Return the spec of a model; see :func:`examine`."""
    return examine(name, trust=trust).spec


def examine(name: str, *, trust: bool = False) -> Examined:
    """Return what planning must know of a model; networks the user brings are traced or probed.

    Args:
        name: as :func:`load`.
        trust: the user allowed the model to run code of its own.

    Raises:
        ModelError: it cannot be found, trusted or loaded. A model that cannot be tiled exactly is
            described as such, and not refused.
    """
    if name in INTERPOLATIONS:
        return Examined(interpolation_spec(name))
    if _is_users(name):
        opened = _opened(name, trust=trust)
        return Examined(opened.spec, lambda spec: opened.engine(spec, device_of("cpu"), "fp32"))
    folder = checkpoint_folder(name)
    if folder.name == RETIRED.get(name):
        log.warning(
            "%s is no longer shipped; %s takes its place, other weights with answers of their own",
            name,
            folder.name,
        )
    return Examined(read_spec(folder), lambda spec: load_module(folder).engine(spec))


def load(name: str, runtime: Runtime) -> Predictor:
    """Make a model ready to predict.

    Args:
        name: ``identity``, ``nearest``, ``linear``, ``cubic``; a shipped checkpoint; a checkpoint
            folder; a ``torch.export`` program ``file.pt2``; a package of bioimage.io, folder or
            ``file.zip``; or ``file.py:make``.
        runtime: how and where.

    Raises:
        ModelError: it cannot be found, trusted or loaded, has another factor, or cannot be tiled
            exactly and ``runtime.allow_inexact`` is not set; or its answer cannot be made
            consistent.
    """
    if name in INTERPOLATIONS:
        spec = interpolation_spec(name).for_factor(runtime.factor)
        _require_consistent(spec, runtime)
        return Interpolation(spec, runtime.dtype, runtime.consistent)
    from isochunk.models.predictor import TorchPredictor

    device = device_of(runtime.device)
    engine: Engine
    if _is_users(name):
        opened = _opened(name, trust=runtime.trust, known=runtime.known)
        spec = opened.spec.for_factor(runtime.factor)
        _require_own_plane(spec, runtime)
        _require_exact(spec, opened.inexact_because, runtime)
        engine = opened.engine(spec, device, runtime.precision)
    else:
        folder = checkpoint_folder(name)
        spec = read_spec(folder)
        spec = spec.on_plane(runtime.plane or spec.plane).for_factor(runtime.factor)
        known = runtime.known is not None and runtime.known.sha256 == spec.sha256
        network = load_module(folder, checked=known)
        _require_exact(spec, network.inexact_because, runtime)
        engine = network.engine(spec)
    _require_consistent(spec, runtime)
    if runtime.consistent:
        from isochunk.models.consistent import ConsistentEngine

        engine = ConsistentEngine(engine, int(spec.resolved_factor[0]))
    return TorchPredictor(
        spec,
        engine,
        device,
        runtime.precision,
        runtime.intensity,
        runtime.tile,
        dtype=runtime.dtype,
    )


def _require_exact(spec: ModelSpec, reason: str, runtime: Runtime) -> None:
    if not spec.exact and not runtime.allow_inexact:
        raise ModelError(
            f"model {spec.name!r} cannot be tiled exactly ({reason}); {option('allow_inexact')} "
            "accepts seams, and the report then says how large they are"
        )


def _require_own_plane(spec: ModelSpec, runtime: Runtime) -> None:
    """Refuse to turn what a user brings: only networks of ours run on planes that they are told."""
    if runtime.plane not in (None, spec.plane):
        raise ModelError(
            f"model {spec.name!r} runs on {spec.plane}, not on {runtime.plane}; leave "
            f"{option('plane')} out"
        )


def _require_consistent(spec: ModelSpec, runtime: Runtime) -> None:
    if runtime.consistent:
        require_consistent(spec)


def shipped() -> list[tuple[str, ModelSpec]]:
    """Return names and specs of the checkpoints that come with isochunk to restore volumes with."""
    return [(name, read_spec(folder)) for name, folder in _in(SHIPPED).items()]


def baselines() -> list[tuple[str, ModelSpec]]:
    """Return names and specs of the checkpoints that come with isochunk to compare with."""
    return [(name, read_spec(folder)) for name, folder in _in(BASELINES).items()]


def _in(home: Path) -> dict[str, Path]:
    folders = sorted(path.parent for path in home.glob(f"*/{MODEL_FILE}"))
    return {folder.name: folder for folder in folders}


def _is_users(name: str) -> bool:
    """Tell whether users bring a network, rather than name a checkpoint."""
    return name.endswith((".pt2", ".py")) or ".py:" in name or is_package(name)


def _opened(name: str, *, trust: bool, known: ModelSpec | None = None) -> UserModel:
    """Open a network that users bring."""
    if is_package(name):
        from isochunk.models.zoo.open import open_package

        return open_package(name, trust=trust, known=known)
    from isochunk.models.user_model import open_user_model

    return open_user_model(name, trust=trust, known=known)


def checkpoint_folder(name: str) -> Path:
    """Find a checkpoint: a folder that exists, else one that is shipped or takes its place.

    Raises:
        ModelError: there is none.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    here = _in(SHIPPED) | _in(BASELINES)
    found = here.get(RETIRED.get(name, name))
    if found is not None:
        return found
    raise ModelError(
        f"no model {name!r}: it is no checkpoint folder and no name; names are "
        f"{', '.join([*INTERPOLATIONS, *here])}; files can be model.pt2, "
        "a bioimage.io package.zip, or my_model.py:make"
    )


def limit_threads(numbers: Sequence[int], device: str) -> None:
    """Set how many threads of this process compute.

    Args:
        numbers: the fastest of these where networks run on the CPU, else the first; torch's default
            where there are none.
        device: where networks run.

    Raises:
        ModelError: a GPU is asked for and there is none.
    """
    if numbers:
        choose_threads(numbers if device_of(device).type == "cpu" else numbers[:1])


def limit_device(wanted: str, share: float) -> int | None:
    """Bound what this process takes of its GPU.

    Args:
        wanted: where networks run, as :func:`device_of` takes it.
        share: of the GPU's memory, more than 0 and at most 1.

    Returns:
        Bytes there are for this process, or None where networks run on the CPU.

    Raises:
        ModelError: a GPU is asked for and there is none.
    """
    import torch

    device = device_of(wanted)
    if device.type != "cuda":
        return None
    torch.cuda.set_per_process_memory_fraction(share, device)
    free, total = torch.cuda.mem_get_info(device)
    return min(free, int(share * total))


def use_device(wanted: str) -> None:
    """Make a GPU the current one of the calling thread.

    CUDA makes each thread begin on the first GPU, and torch goes back to a thread's current one
    after each use of a stream: hundreds of MiB would be held there, by each process.

    Args:
        wanted: cuda, with a number.
    """
    import torch

    torch.cuda.set_device(torch.device(wanted))


def device_of(wanted: str) -> torch.device:
    """Choose where to run.

    Args:
        wanted: auto, cpu, cuda, or another name that torch has for a device.

    Raises:
        ModelError: a GPU is asked for and there is none, or there is no such device.
    """
    import torch

    there = torch.cuda.is_available()
    if wanted == "auto":
        wanted = "cuda" if there else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ModelError(f"device {wanted!r} is unknown; choose one of auto, cpu, cuda") from None
    if device.type != "cuda":
        return device
    if not there:
        raise ModelError(
            f"--device {wanted}, but torch sees no GPU; use --device cpu, install torch with CUDA, "
            "or a driver that is new enough for this one (nvidia-smi says which there is)"
        )
    # What torch asks of a device it asks by number.
    index = torch.cuda.current_device() if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        raise ModelError(
            f"device {wanted}, but torch sees {count} GPU(s), from cuda:0 on; see what nvidia-smi "
            "and CUDA_VISIBLE_DEVICES say, which must be the same for all workers of a host"
        )
    return torch.device("cuda", index)

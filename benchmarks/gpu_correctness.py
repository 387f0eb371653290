"""How near to double precision each network comes on a device, and what else must hold there.

The reference is the same network in float64 on the CPU, run by the same engine on the whole box at
once. Shares are of stored voxels; errors are of answers before they are rounded, in grey levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import workload
from gpu_machine import GIB, Line, NotHereError, Setting, first_line
from gpu_networks import FACTOR, SPACING, SRUNET_Z4, TINY, Subject
from numpy.typing import NDArray
from torch import Tensor

from isochunk.core.geometry import Box, Factor, Spacing, Triple, ceil_div, triple
from isochunk.core.job import Precision
from isochunk.core.limits import DEVICE_ELEMENTS
from isochunk.core.spec import Intensity, LevelSpec, ModelSpec, VolumeSpec
from isochunk.core.synthetic import synthetic_em
from isochunk.core.voxels import Voxels
from isochunk.errors import PredictionError
from isochunk.models.interface import predict
from isochunk.models.load import Runtime, describe, examine, load
from isochunk.models.predictor import TorchPredictor
from isochunk.models.tiling import Engine
from isochunk.storage.open import create_volume

PATTERN: Triple = (64, 256, 256)
"""Voxels of a source that are made; larger ones repeat them."""

SINGLE: tuple[Precision, ...] = ("fp32", "tf32")
"""Precisions whose weights are float32."""

TRAINED_STEPS = 3
"""Steps of the training that must get past its first snapshots."""


@dataclass(frozen=True)
class Case:
    """A network, and a box that it is to answer for."""

    setting: Setting
    """Where."""
    model: str
    """What a job calls the network."""
    dtype: str = "uint8"
    """Of the source."""
    trust: bool = False
    """Whether it may run code of its own."""
    shape: Triple | None = None
    """Of the box; None for one that double precision on a CPU takes seconds for."""

    @cached_property
    def spec(self) -> ModelSpec:
        """Its spec, its factor fixed."""
        found = describe(self.model, trust=self.trust)
        z, y, x = found.factor
        factor: Factor = (FACTOR if z is None else z, y or FACTOR / FACTOR, x or FACTOR / FACTOR)
        return found.for_factor(factor)

    @cached_property
    def write(self) -> Box:
        """Target voxels that are compared."""
        if self.shape is not None:
            return Box.from_shape(self.shape)
        shape = (8, 16, 16) if self.setting.small else (32, 64, 64)
        if self.spec.plane == "xy":  # whole sections, each finer
            shape = (1, 32, 32) if self.setting.small else (4, 128, 128)
        return Box.from_shape(shape)

    @cached_property
    def read(self) -> Box:
        """Source voxels under it."""
        return self.spec.read_box(self.write)

    @cached_property
    def source(self) -> Voxels:
        """Voxels of ``read``."""
        small = triple(map(min, self.read.shape, PATTERN))
        counts = triple(map(ceil_div, self.read.shape, small))
        voxels: Voxels = np.tile(synthetic_em(small, 2, SPACING, self.read.lo), counts)
        voxels = np.ascontiguousarray(voxels[Box.from_shape(self.read.shape).slices((0, 0, 0))])
        return voxels if self.dtype == "uint8" else voxels.astype(np.uint16) * 257

    @property
    def intensity(self) -> Intensity:
        """What stored values mean."""
        if self.spec.normalisation == "standard":
            return Intensity(float(self.source.mean()), float(self.source.std()))
        return Intensity.full_range(self.dtype)

    def predictor(self, precision: Precision, tile: Triple) -> TorchPredictor:
        """Make it ready, as a worker does; the process then multiplies as this one needs it."""
        runtime = Runtime(
            self.spec.resolved_factor,
            self.intensity,
            self.dtype,
            self.setting.device_name,
            precision,
            tile,
            trust=self.trust,
            known=self.spec,
        )
        loaded = load(self.model, runtime)
        assert isinstance(loaded, TorchPredictor)
        return loaded

    @cached_property
    def exact(self) -> NDArray[np.float64]:
        """What the network answers in double precision on the CPU, not rounded."""
        on_cpu = replace(self, setting=replace(self.setting, small=True))
        engine = on_cpu.predictor("fp32", self.write.shape).engine
        engine.module.double()
        part = self.source[engine.needs(self.write).slices(self.read.lo)]
        tile = torch.from_numpy((part - self.intensity.offset) / self.intensity.scale)
        with torch.inference_mode():
            answer: Tensor = engine(tile[None, None], self.write)[0, 0]
        return answer.numpy() * self.intensity.scale + self.intensity.offset

    def stored(self, answers: NDArray[np.float64]) -> NDArray[np.int64]:
        """Round answers as they are stored."""
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(answers), limits.min, limits.max).astype(np.int64)

    def predicted(self, predictor: TorchPredictor, tile: Triple | None = None) -> NDArray[np.int64]:
        """Predict the box as a worker does; in tiles of another shape, if one is given."""
        if tile is not None:
            predictor.tile = tile
        return predict(predictor, self.source, self.read, self.write).astype(np.int64)


def against_double(
    case: Case, network: Subject | str, precisions: tuple[Precision, ...] | None = None
) -> list[Line]:
    """Compare each precision with double precision, with fp32, and tiles with other tiles."""
    name = network if isinstance(network, str) else network.name
    weights = "random" if isinstance(network, str) else network.weights
    lines: list[Line] = []
    fp32 = None
    for precision in precisions or case.setting.precisions:
        line: Line = {"network": name, "weights": weights, "dtype": case.dtype}
        line |= {"precision": precision}
        lines.append(line)
        try:
            predictor = case.predictor(precision, case.write.shape)
            heard = Heard(predictor.engine)
            predictor.engine = heard
            got = case.predicted(predictor)
            answer = heard.answer.double().cpu().numpy()
            raw = answer * case.intensity.scale + case.intensity.offset
            line["nan"] = not np.isfinite(raw).all()
            cut = case.predicted(predictor, parts(case))
        except PredictionError as error:
            line |= {"nan": "NaN" in str(error), "error": first_line(error)}
            continue
        error = raw - case.exact
        line |= {
            "same_as_double": same(got, case.stored(case.exact)),
            "rms": math.sqrt(float((error**2).mean())),
            "max": float(np.abs(error).max()),
            "seam_same": same(got, cut),
            "seam_max": int(np.abs(got - cut).max()),
        }
        if precision == "fp32":
            fp32 = got
        if fp32 is not None:
            line["same_as_fp32"] = same(got, fp32)
    if case.setting.small:  # a CPU computes tf32 as fp32
        lines[1:1] = [
            {**line, "precision": "tf32"} for line in lines if line["precision"] == "fp32"
        ]
    return lines


def parts(case: Case) -> Triple:
    """Return the shape of tiles that cut a box where that is worst: along all axes, on a GPU."""
    z, y, x = case.write.shape
    return (z, y // 2, x) if case.setting.small else (max(z // 2, 1), y // 2, x // 2)


def same(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the share of voxels that are equal."""
    return float((one == other).mean())


def network(setting: Setting, subject: Subject) -> list[Line]:
    """Compare a network of isochunk's own."""
    return against_double(Case(setting, subject.model(setting.work)), subject)


def sixteen_bits(setting: Setting) -> list[Line]:
    """Compare a network on uint16, where a grey level is 1/65535 of the range."""
    subject = TINY[1]
    return against_double(Case(setting, subject.model(setting.work), "uint16"), subject)


def users_networks(setting: Setting) -> list[Line]:
    """Compare a Python file and an exported program with the checkpoint of the same weights."""
    folder = setting.work / "user"
    if not folder.exists():
        folder.mkdir()
        workload.prepare(folder, (32, 128, 128))
    checkpoint = Case(setting, str(folder / workload.CHECKPOINT))
    lines = []
    for name, file in (
        ("user's .py", f"{folder / workload.PYTHON_FILE}:make"),
        ("user's .pt2", str(folder / workload.PROGRAM)),
    ):
        case = Case(setting, file, trust=True)
        assert case.write == checkpoint.write
        # Not its own answer in double precision, which would not show a wrong trace.
        case.__dict__["exact"] = checkpoint.exact
        # Exported programs have one number format; on a CPU one says enough.
        single = file.endswith(".pt2") or setting.small
        formats = tuple(p for p in setting.precisions if p in SINGLE or not single)
        lines += against_double(case, name, formats)
    return lines


def out_of_memory(setting: Setting) -> list[Line]:
    """Take memory away: the tile must be halved, and the answer stay what it is."""
    subject = TINY[1] if setting.small else SRUNET_Z4
    shape = (8, 16, 16) if setting.small else (128, 256, 256)
    case = Case(setting, subject.model(setting.work), shape=shape)
    whole = case.write.shape
    predictor = case.predictor("fp32", whole)
    wanted = case.predicted(predictor)
    if setting.small:
        predictor.engine = Greedy(predictor.engine, math.prod(whole) // 2)
        got = case.predicted(predictor)
    else:
        got = with_less_memory(case, predictor)
    difference = int(np.abs(wanted - got).max())
    passed = predictor.halvings > 0 and difference <= 1
    detail = f"{predictor.halvings} halvings, {same(wanted, got):.4%} identical"
    return [{"what": "memory runs out", "passed": passed, "detail": detail}]


def with_less_memory(case: Case, predictor: TorchPredictor) -> NDArray[np.int64]:
    """Predict with three quarters of what the whole box took."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_reserved()
    case.predicted(predictor)
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    try:
        share = (held + 0.75 * (peak - held)) / total
        torch.cuda.set_per_process_memory_fraction(share, case.setting.device)
        return case.predicted(predictor)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, case.setting.device)
        torch.cuda.empty_cache()


@dataclass(slots=True)
class Around:
    """An engine that is as another, but for its answers."""

    engine: Engine
    """What answers."""

    @property
    def module(self) -> torch.nn.Module:
        """The network itself."""
        return self.engine.module

    @property
    def largest(self) -> Triple | None:
        """Largest tile of the engine."""
        return self.engine.largest

    def needs(self, want: Box) -> Box:
        """Return the source voxels needed."""
        return self.engine.needs(want)


@dataclass(slots=True)
class Heard(Around):
    """An engine whose last answer is kept, as it is before it is rounded."""

    answer: Tensor = field(default_factory=lambda: torch.zeros(()))
    """(z, y, x) of the network's unit."""

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict."""
        answer = self.engine(tile, want)
        self.answer = answer[0, 0].clone()
        return answer


@dataclass(slots=True)
class Greedy(Around):
    """An engine that has no memory for tiles above a size, as a GPU says it."""

    most: int
    """Target voxels."""

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict, or refuse."""
        if want.size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory (said by a benchmark)")
        return self.engine(tile, want)


def large_tensor(setting: Setting) -> list[Line]:
    """Predict one tile whose largest tensor is above 2^31 elements, and the same in small tiles.

    The planner keeps tiles below; this tells whether it must.
    """
    if setting.small:
        raise NotHereError("needs a GPU")
    case = Case(setting, SRUNET_Z4.model(setting.work))
    costs = examine(case.model).costs(case.spec, "fp16")
    assert costs is not None
    small = (256, 256, 256)
    tile = small
    while costs.of(tile).elements <= DEVICE_ELEMENTS:
        axis = min(range(3), key=lambda a: tile[a])
        tile = triple(n + 64 * (a == axis) for a, n in enumerate(tile))
    cost = costs.of(tile)
    free, _ = torch.cuda.mem_get_info()
    detail = f"tile {tile}, {cost.elements / 2**31:.2f} x 2^31 elements, {cost.bytes / GIB:.0f} GiB"
    if 1.3 * cost.bytes > free:
        raise NotHereError(f"{detail} do not fit {free / GIB:.0f} GiB")
    whole = replace(case, shape=tile)
    predictor = whole.predictor("fp16", tile)
    try:
        one = whole.predicted(predictor)
        many = whole.predicted(predictor, small)
    finally:
        torch.cuda.empty_cache()
    difference = int(np.abs(one - many).max())
    passed = difference <= 1 and predictor.halvings == 0
    said = f"{detail}; {same(one, many):.4%} identical, at most {difference} apart"
    if predictor.halvings:
        said += f"; halved {predictor.halvings} times, so the large tile was refused"
    return [{"what": "a tensor above 2^31 elements", "passed": passed, "detail": said}]


def training(setting: Setting) -> list[Line]:
    """Train a small PSSR past its first snapshots."""
    try:
        from isochunk.train.presets import config_from_table
        from isochunk.train.training import train
    except ImportError as error:
        raise NotHereError(str(error)) from error
    folder = setting.work / "training"
    spacing = Spacing.parse("32,8,8")
    shape = (8, 96, 440)
    level = LevelSpec("s0", Box.from_shape(shape), spacing, (8, 96, 128), None)
    corner = (FACTOR * 0,) * 3
    url = f"file://{folder}/em.zarr"
    volume = create_volume(VolumeSpec(url, "zarr3", "uint8", "raw", corner, (level,)))
    volume.write(level.box, synthetic_em(shape, seed=3, spacing=spacing))
    table: dict[str, Any] = {
        "arch": "pssr",
        "sources": [url],
        "out": str(folder / "out"),
        "mode": "supervised",
        "network": {"width": 4, "depths": [1, 1, 1, 1]},
        "steps": TRAINED_STEPS,
        "patch": [1, 64, 64],
        "batch": 2,
        "device": setting.device_name,
        "keeping": {"validate_every": 1, "crops": 2, "save_every": 1},
    }
    report = train(config_from_table(table))
    passed = report.stopped == "finished" and report.step == TRAINED_STEPS
    detail = f"{report.stopped} at step {report.step}, best {report.best_psnr:.2f} dB"
    return [{"what": "PSSR is trained past a snapshot", "passed": passed, "detail": detail}]


SPECIAL: dict[str, Callable[[Setting], list[Line]]] = {
    "memory runs out": out_of_memory,
    "PSSR is trained past a snapshot": training,
    "a tensor above 2^31 elements": large_tensor,
}
"""What passes or does not."""

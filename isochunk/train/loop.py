"""Supervised training of Heinrich et al. 2017, made to survive being killed.

State is written whole and atomically. On a CPU with the same number of threads, a run that was
killed and resumed ends with bit-identical weights: crops are a function of (seed, step), and
weights, moments and the moving average are all that a step changes.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import tqdm

from isochunk.atomic import write_atomically
from isochunk.errors import TargetConflictError, UsageError
from isochunk.geometry import Triple
from isochunk.intensity import measure_intensity
from isochunk.models.checkpoint import Card, save
from isochunk.models.fsrcnn import FSRCNN, FSRCNNConfig
from isochunk.models.placed import SAME, Placed, PlacedNetwork
from isochunk.models.srunet import SRUNet
from isochunk.spec import Intensity
from isochunk.storage.tensorstore import check_supported, open_volume
from isochunk.storage.volume import Volume
from isochunk.train.config import NetworkConfig, Optimisation, TrainConfig, fingerprint
from isochunk.train.data import Batch, Crops, Sampling, Source, read_ahead, split, validation_crops
from isochunk.train.degrade import degrade

log = logging.getLogger(__name__)

READ_AHEAD = 4
"""Batches read while the network works."""

Stopped: TypeAlias = Literal["finished", "terminated", "diverged"]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """How a training ended."""

    out: str
    """Folder of the best snapshot, a checkpoint ``--model`` takes."""
    stopped: Stopped
    """All steps done; SIGTERM, to be resumed by the same command; or the loss became NaN."""
    step: int
    """Steps done, those before a resume included."""
    best_step: int
    """Step of the snapshot that was kept; 0 if there is none."""
    best_psnr: float
    """Its validation PSNR in dB."""
    cubic_psnr: float
    """Validation PSNR in dB of cubic interpolation on the same crops."""
    wall_s: float
    """Time this call took."""


def train(config: TrainConfig) -> TrainReport:
    """Train a network from the volumes of a config, or go on where a killed run stopped.

    Raises:
        UsageError: a volume is anisotropic, constant or smaller than a crop, or there is no
            such device.
        TargetConflictError: ``out`` holds a training of another config.
        StorageError: a volume cannot be read.
    """
    return fit(config, tuple(open_volume(url) for url in config.sources))


def fit(config: TrainConfig, volumes: tuple[Volume, ...]) -> TrainReport:
    """Train from open volumes, one for each of ``config.sources``; see :func:`train`."""
    started = time.monotonic()
    device = _device(config.device)
    sources = tuple(_source(volume, config) for volume in volumes)
    parts = tuple(split(v.spec.box, config.split_axis) for v in volumes)
    sampling = Sampling(
        config.patch,
        config.batch,
        config.network.factor,
        config.averages,
        config.augmentation,
        config.seed,
    )
    crops = Crops(sources, tuple(part[0] for part in parts), sampling)
    held_out = validation_crops(
        sources, tuple(part[1] for part in parts), sampling, config.keeping.crops
    )
    unit = sources[0].intensity.scale / _full_scale(volumes[0])
    run = Run(config, held_out.to(device), unit)
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        _sigterm() as terminated,
    ):
        stopped = _steps(run, crops, terminated)
    return TrainReport(
        config.out,
        stopped,
        run.step,
        run.best_step,
        run.best_psnr,
        run.cubic_psnr,
        time.monotonic() - started,
    )


class Run:
    """The state of one training: what a step changes, and how it is saved."""

    def __init__(self, config: TrainConfig, held_out: Tensor, unit: float) -> None:
        """Start fresh, or from the state in ``config.out``.

        Args:
            config: what to train.
            held_out: validation crops on the training's device, (n, 1, z, y, x).
            unit: one unit of the model's values as a part of the dtype's range, for PSNR.
        """
        self.config = config
        self.held_out = held_out
        self.unit = unit
        self.step = 0
        self.best_step = 0
        self.best_psnr = -math.inf
        self.history: list[dict[str, float]] = []
        network = build(config.network, config.seed).to(held_out.device)
        # Twice as fast as the default layout on a CPU.
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = deepcopy(self.network) if config.optimisation.average else self.network
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.optimisation.lr)
        self.folder = Path(config.out) / "training"
        self.cubic_psnr = self._psnr(self._cubic)
        self._resume()

    def update(self, batch: Batch) -> float:
        """Take one step of Adam; returns the loss, and leaves the weights alone if it is NaN."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optimisation, self.step, config.steps)
        target = batch.target.to(self.held_out.device)
        sections = degrade(target, config.network.factor, config.degradation)
        sections = sections + batch.noise.to(target.device)
        predicted = self.network(sections.contiguous(memory_format=torch.channels_last_3d))
        loss = mse_loss(_inner(predicted, config.border), _inner(target, config.border))
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        if self.average is not self.network:
            self._average()
        return value

    def validate(self, loss: float) -> None:
        """Judge the weights, and keep them if none were better."""
        psnr = self._psnr(self.average)
        self.history.append({"step": self.step, "loss": loss, "validation_psnr": psnr})
        log.info(
            "step %d: loss %.5f, validation PSNR %.3f dB (cubic %.3f dB)",
            self.step,
            loss,
            psnr,
            self.cubic_psnr,
        )
        if psnr > self.best_psnr:
            self.best_psnr, self.best_step = psnr, self.step
            self._snapshot()

    def save(self) -> None:
        """Write the whole state atomically."""
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_step": self.best_step,
            "best_psnr": self.best_psnr,
            "history": self.history,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps(fingerprint(self.config), indent=1)
        write_atomically(self.folder / "config.json", lambda file: file.write(told.encode()))
        write_atomically(self.folder / "state.pt", lambda file: torch.save(state, file))

    def _snapshot(self) -> None:
        config = self.config
        record = {
            **fingerprint(config),
            "steps": config.steps,
            "anneal": config.optimisation.anneal,
            "best_step": self.best_step,
            "validation_psnr": self.best_psnr,
            "validation_psnr_cubic": self.cubic_psnr,
            "torch": torch.__version__,
        }
        card = Card(
            config.model_name,
            config.licence,
            config.trained_on,
            phase="mean" if config.degradation == "avg" else "sample",
            normalisation=config.normalisation,
            training=record,
        )
        save(Path(config.out), self.average, card)

    def _resume(self) -> None:
        if not (self.folder / "state.pt").exists():
            return
        mine = json.loads(json.dumps(fingerprint(self.config)))
        theirs = json.loads((self.folder / "config.json").read_text())
        differing = [key for key in mine if mine[key] != theirs.get(key)]
        if differing:
            listed = "; ".join(
                f"{key}: {theirs.get(key)} there, {mine[key]} now" for key in differing
            )
            raise TargetConflictError(
                f"{self.config.out} holds the training of another config ({listed}); "
                "choose another out folder"
            )
        state = torch.load(
            self.folder / "state.pt", map_location=self.held_out.device, weights_only=True
        )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.best_step, self.best_psnr = state["best_step"], state["best_psnr"]
        self.history = state["history"]
        log.info("going on at step %d of %s", self.step, self.config.out)

    @torch.no_grad()
    def _average(self) -> None:
        # Early on the average follows the weights, else it would drag the initial ones along.
        decay = min(self.config.optimisation.average, (1 + self.step) / (10 + self.step))
        for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)

    @torch.no_grad()
    def _psnr(self, predict: Callable[[Tensor], Tensor]) -> float:
        """Return the PSNR in dB of the dtype's range over all validation crops, rims left out."""
        total, count = 0.0, 0
        for crop in self.held_out:
            target = crop[None]
            sections = degrade(target, self.config.network.factor, self.config.degradation)
            predicted = predict(sections.contiguous(memory_format=torch.channels_last_3d))
            difference = _inner(predicted - target, self.config.border)
            total += float(difference.double().square().sum())
            count += difference.numel()
        mse = total / count * self.unit**2
        return -10 * math.log10(mse) if mse > 0 else math.inf

    def _cubic(self, sections: Tensor) -> Tensor:
        factor = self.config.network.factor
        return SAME.interpolate(Placed(sections, (0, 0, 0)), factor, "cubic").data


def learning_rate(optimisation: Optimisation, step: int, steps: int) -> float:
    """Return the learning rate of a step; a pure function, so that a resumed run agrees."""
    rate = optimisation.lr * min(1.0, (step + 1) / max(1, optimisation.warmup))
    rate *= min(1.0, (steps - step) / max(1, optimisation.anneal))
    if optimisation.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return rate / math.sqrt(1 + step // optimisation.period)


def build(network: NetworkConfig, seed: int) -> PlacedNetwork:
    """Make a network with seeded initial weights; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FSRCNN(network) if isinstance(network, FSRCNNConfig) else SRUNet(network)


def _steps(run: Run, crops: Crops, terminated: threading.Event) -> Stopped:
    keeping, steps = run.config.keeping, run.config.steps
    batches = read_ahead(crops.batch, range(run.step, steps), READ_AHEAD)
    bar = tqdm(total=steps, initial=run.step, unit="step", disable=None)
    recent = math.nan
    try:
        for batch in batches:
            loss = run.update(batch)
            if not math.isfinite(loss):
                log.error(
                    "the loss is %s at step %d; keeping the snapshot of step %d; "
                    "try a lower lr or a warmup",
                    loss,
                    run.step,
                    run.best_step,
                )
                return "diverged"
            recent = loss if math.isnan(recent) else 0.98 * recent + 0.02 * loss
            bar.update()
            last = run.step == steps
            if last or run.step % keeping.validate_every == 0:
                run.validate(recent)
                bar.set_postfix_str(f"PSNR {run.history[-1]['validation_psnr']:.2f} dB")
            if last or terminated.is_set() or run.step % keeping.save_every == 0:
                run.save()
            if terminated.is_set() and not last:
                log.warning("terminated at step %d; the same command goes on there", run.step)
                return "terminated"
    finally:
        bar.close()
        batches.close()
    return "finished"


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event for as long as training runs, so that the state is saved."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals can only be handled in the main thread
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _inner(x: Tensor, border: Triple) -> Tensor:
    """Leave the rims out."""
    z, y, w = (slice(b, n - b) for b, n in zip(border, x.shape[2:], strict=True))
    return x[:, :, z, y, w]


def _full_scale(volume: Volume) -> float:
    return Intensity.full_range(volume.spec.dtype).scale


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: torch finds no GPU here; choose --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} is unknown; choose auto, cpu or cuda") from None


def _source(volume: Volume, config: TrainConfig) -> Source:
    check_supported(volume.spec)
    _require_isotropic(volume, config)
    measured = measure_intensity(volume, "standard")  # refuses a volume with nothing to learn
    if config.normalisation == "range":
        measured = Intensity.full_range(volume.spec.dtype)
    return Source(volume, measured)


def _require_isotropic(volume: Volume, config: TrainConfig) -> None:
    spacing = volume.spec.spacing
    for average in config.averages:
        averaged = {s * a for s, a in zip(spacing, average, strict=True)}
        if len(averaged) != 1:
            raise UsageError(
                f"{volume.spec.url} has voxels of {spacing} nm (z, y, x), averaged {average}; "
                "supervised training needs an isotropic volume: choose another source, or "
                "averages that make it isotropic"
            )

"""The steps of one training, from open volumes to a checkpoint; made to survive being killed."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Literal, TypeAlias

import torch
from tqdm import tqdm

from isochunk.core.geometry import Box
from isochunk.errors import UsageError
from isochunk.storage.volume import Volume
from isochunk.train.augment import Augmentation
from isochunk.train.config import TrainConfig
from isochunk.train.data import (
    ACROSS,
    ANY,
    IN_PLACE,
    LATERAL,
    UPRIGHT,
    Batch,
    Crops,
    Sampling,
    Source,
    read_ahead,
    split,
    validation_crops,
)
from isochunk.train.pairs import pairings_of
from isochunk.train.ranks import Ranks, joined
from isochunk.train.run import Run, require_free
from isochunk.train.schedule import scheduled_stages, stage_index
from isochunk.train.sources import use_volume, with_factors

log = logging.getLogger(__name__)

READ_AHEAD = 8
"""Batches read while the network works, each by a thread."""

ACROSS_SHARE = 0.8
"""Share of the steps of mode self3d that ask for recorded detail alone, before others ask for what
the first pass made, too: that from the start, a network becomes no better than its first pass."""

LINE_S = 60.0
"""Seconds between lines of progress in a log file."""

Stopped: TypeAlias = Literal["finished", "terminated", "diverged"]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """How a training ended."""

    out: str
    """Folder of the best snapshot, a checkpoint ``--model`` takes; ``last`` in it is the last."""
    stopped: Stopped
    """All steps done; SIGTERM, to be resumed by the same command; or the loss became NaN."""
    step: int
    """Steps done, those before a resume included."""
    best_step: int
    """Step of the snapshot that was kept; 0 if there is none."""
    best_psnr: float
    """Its validation PSNR in dB."""
    linear_psnr: float
    """Validation PSNR in dB of linear interpolation on the same crops."""
    cubic_psnr: float
    """The same of cubic interpolation."""
    wall_s: float
    """Time this call took."""


def fit(config: TrainConfig, volumes: tuple[Volume, ...]) -> TrainReport:
    """Train from open volumes, or go on where a killed run stopped.

    Of several processes started by ``torchrun``, each calls this; the first validates and writes.

    Args:
        config: what to train.
        volumes: one for each of its sources.

    Raises:
        UsageError: see :func:`isochunk.train.training.train`.
        TargetConflictError: ``out`` holds a training of another config, or another checkpoint.
        StorageError: a volume cannot be read.
    """
    started = time.monotonic()
    config = with_factors(config, volumes)
    require_free(config)
    sources = tuple(use_volume(volume, config) for volume in volumes)
    parts = [split(volume.spec.box, config.split_axis) for volume in volumes]
    if config.loss.perceptual != "none" and not config.loss.vgg:
        log.warning(
            "no VGG file is given: training goes without %s, on the pixels' error alone; "
            "--vgg FILE names one",
            config.loss.perceptual,
        )
    with (
        joined(config.device) as ranks,
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        _sigterm() as terminated,
    ):
        batches = Batches(config, sources, tuple(part[0] for part in parts), ranks)
        seen = config.augmentation.defects_alone if config.keeping.defects else Augmentation()
        plain = sampling_of(replace(config, augmentation=seen))
        held_out = validation_crops(
            sources,
            tuple(part[1] for part in parts),
            replace(plain, patch=config.validation_patch),
            config.keeping.crops,
        )
        run = Run(config, held_out, ranks, sources[0].shades)
        if ranks.first:
            run.claim()
        stopped = _steps(run, batches, terminated)
    return TrainReport(
        config.out,
        stopped,
        run.step,
        run.best_step,
        run.best_psnr,
        run.references["linear"],
        run.references["cubic"],
        time.monotonic() - started,
    )


class Batches:
    """The batches of a whole training: those of each stage, at its steps."""

    def __init__(
        self, config: TrainConfig, sources: tuple[Source, ...], parts: tuple[Box, ...], ranks: Ranks
    ) -> None:
        """Check that every part holds the crops of every stage.

        Raises:
            UsageError: a part is smaller than a crop, or a batch cannot be shared.
        """
        self.config = config
        usual = replace(sampling_of(config), rank=ranks.rank, ranks=ranks.size)
        self._stages, self._across = [], []
        for stage in (scheduled.stage for scheduled in scheduled_stages(config)):
            if stage.batch % ranks.size:
                raise UsageError(
                    f"a batch of {stage.batch} crops cannot be shared among {ranks.size} "
                    "processes; choose a multiple"
                )
            sampling = replace(usual, patch=stage.patch, batch=stage.batch)
            self._stages.append(Crops(sources, parts, sampling))
            if usual.orders == ANY:
                self._across.append(Crops(sources, parts, replace(sampling, orders=ACROSS)))

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step; may be called in any thread."""
        recorded = step >= ACROSS_SHARE * self.config.steps
        stages = self._stages if recorded or not self._across else self._across
        return stages[stage_index(self.config, step)].batch(step)


def sampling_of(config: TrainConfig) -> Sampling:
    """Return how the crops of a config are drawn."""
    if config.mode == "self":
        orders = LATERAL
    elif config.mode == "self3d":
        # Along y and x detail was recorded; along z, last, the input is as it will be in a run.
        orders = ANY
    else:
        orders = IN_PLACE if config.patch[1] == config.patch[2] else UPRIGHT
    return Sampling(
        patch=config.patch,
        batch=config.batch,
        factors=config.factors,
        averages=config.averages,
        augmentation=config.augmentation,
        seed=config.seed,
        pairings=pairings_of(config.degradation, config.augmentation),
        orders=orders,
        balance=config.balance,
        hardest_of=config.hardest_of,
    )


def _steps(run: Run, batches: Batches, terminated: threading.Event) -> Stopped:
    keeping, steps, first = run.config.keeping, run.config.steps, run.ranks.first
    ahead = read_ahead(batches, range(run.step, steps), READ_AHEAD)
    progress = Progress(run.step, steps, shown=first)
    recent = math.nan
    try:
        for batch in ahead:
            loss = run.update(batch)
            asked = run.ranks.mean(float(terminated.is_set())) > 0
            last = run.step == steps
            validate = last or run.step % keeping.validate_every == 0
            keep = last or asked or run.step % keeping.save_every == 0
            if not math.isfinite(loss) or ((validate or keep) and not run.healthy()):
                log.error(
                    "the loss is %s at step %d; keeping the snapshot of step %d; "
                    "try a lower lr or a warmup",
                    loss,
                    run.step,
                    run.best_step,
                )
                return "diverged"
            recent = loss if math.isnan(recent) else 0.98 * recent + 0.02 * loss
            if first and validate:
                run.validate(recent)
            if first and keep:
                run.save()
            progress(run.step, recent, run.best_psnr)
            if asked and not last:
                log.warning("terminated at step %d; the same command goes on there", run.step)
                return "terminated"
    finally:
        progress.close()
        ahead.close()
    return "finished"


class Progress:
    """Steps done and time left: a bar on a terminal, plain lines in a log file."""

    def __init__(self, first: int, steps: int, *, shown: bool) -> None:
        """Start at a step."""
        self._first, self._steps, self._shown = first, steps, shown
        self._bar = tqdm(total=steps, initial=first, unit="step", disable=None if shown else True)
        self._started = self._line = time.monotonic()

    def __call__(self, step: int, loss: float, best_psnr: float) -> None:
        """Show a step."""
        self._bar.update()
        self._bar.set_postfix_str(f"loss {loss:.5f}, best {best_psnr:.2f} dB", refresh=False)
        now = time.monotonic()
        if self._bar.disable and self._shown and now - self._line >= LINE_S:
            self._line = now
            per_step = (now - self._started) / (step - self._first)
            log.info(
                "%d of %d steps, loss %.5f, about %.0f s left",
                step,
                self._steps,
                loss,
                per_step * (self._steps - step),
            )

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


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

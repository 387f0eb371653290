"""The state of one training: what a step changes, how it is validated, and how it is kept.

State is written whole and atomically. On a CPU with the same number of threads, a run that was
killed and resumed ends with bit-identical weights: crops are a function of (seed, step), rates of
the step, and weights, moments and the moving average are all that a step changes.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from isochunk.core.degradation import degradations_of, phase_of
from isochunk.core.geometry import Triple
from isochunk.errors import TargetConflictError
from isochunk.host.files import write_atomically
from isochunk.models.checkpoint import MODEL_FILE, Card, save
from isochunk.models.counting import Cost
from isochunk.train.apply import Application, Criterion, build, interpolated, require_fit
from isochunk.train.config import TrainConfig
from isochunk.train.data import Batch, Shades
from isochunk.train.encoder import load_encoder
from isochunk.train.fingerprint import differences, fingerprint
from isochunk.train.muon import optimisers
from isochunk.train.pictures import Picture, curves, side_by_side
from isochunk.train.ranks import Ranks
from isochunk.train.schedule import rates, scheduled_stages
from isochunk.train.start import start_from

log = logging.getLogger(__name__)

REFERENCES = ("linear", "cubic")
"""Interpolations validated on the same crops."""
SHOWN = 4
"""Validation crops drawn."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """One training."""

    def __init__(
        self,
        config: TrainConfig,
        held_out: list[Batch],
        ranks: Ranks,
        shades: Shades,
    ) -> None:
        """Start fresh, or from the state in ``config.out``.

        Args:
            config: what to train, its factors filled in.
            held_out: validation crops.
            ranks: this process among those that train together.
            shades: the model's values of black and of white.

        Raises:
            UsageError: crops do not fit the network, weights to start from are of another one, or
                the VGG file cannot be used.
            ModelError: there is no such checkpoint to start from, or it was changed.
        """
        self.config = config
        self.ranks = ranks
        self.device = ranks.device
        self.shades = shades
        self.held_out = [self._moved(batch) for batch in held_out]
        self.step = 0
        self.best_step = 0
        self.best_psnr = -math.inf
        self.history: list[dict[str, float]] = []
        self.cost: Cost | None = None
        self.folder = Path(config.out) / "training"
        self.phases = tuple(dict.fromkeys(map(phase_of, degradations_of(config.degradation))))
        """Where the sections lie that it is trained for; a checkpoint for each is kept."""
        network = build(config.network, config.seed)
        if config.encoder:
            load_encoder(network, Path(config.encoder))
        self.started_from = ""
        """Digest of the checkpoint whose weights it started from."""
        if config.start and not self._begun():
            self.started_from = start_from(network, config.start, config.normalisation)
        for patch in (config.validation_patch, *(s.stage.patch for s in scheduled_stages(config))):
            require_fit(network, patch)
        network = network.in_fastest_layout().to(self.device)
        self.trained = Application(network)
        averaged = config.optimisation.average > 0
        self.validated = deepcopy(self.trained) if averaged else self.trained
        """What is validated and kept: the moving average of the weights, or the weights."""
        self.adam, *self.others = optimisers(
            network.parameter_groups(), config.optimisation.optimiser
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.criterion = Criterion(config.loss, shades, self.device)
        self.references = {
            kernel: self._psnr(partial(self._interpolated, kernel=kernel)) for kernel in REFERENCES
        }
        self._resume()
        self.shared = ranks.share(self.trained)

    def update(self, batch: Batch) -> float:
        """Take one step; returns the loss, and leaves the weights alone if it is NaN."""
        self._set_rates()
        batch = self._moved(batch)
        self.trained.train()
        with self._autocast():
            predicted = self.shared(
                batch.coarse, batch.factor, batch.phase, batch.corner, batch.target
            )
        loss = self.criterion(self._inner(predicted.float()), self._inner(batch.target))
        value = self.ranks.mean(float(loss.detach()))
        if not math.isfinite(value):
            return value
        self.trained.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        steppers = (self.adam, *self.others)
        if self.config.optimisation.clip:
            for stepper in steppers:
                self.scaler.unscale_(stepper)
            clip_grad_norm_(self.trained.parameters(), self.config.optimisation.clip)
        for stepper in steppers:
            self.scaler.step(stepper)
        self.scaler.update()
        self.step += 1
        if self.validated is not self.trained:
            self._average()
        return value

    def healthy(self) -> bool:
        """Tell whether all weights are finite, so that they may be validated and kept."""
        return all(bool(p.isfinite().all()) for p in self.trained.parameters())

    def validate(self, loss: float) -> None:
        """Validate the weights, keep them as the last and, if none were better, as the best."""
        psnr = self._psnr(self._predicted)
        self.history.append({"step": self.step, "loss": loss, "validation_psnr": psnr})
        log.info(
            "step %d: loss %.5f, validation PSNR %.3f dB (cubic %.3f dB)",
            self.step,
            loss,
            psnr,
            self.references["cubic"],
        )
        if psnr > self.best_psnr:
            self.best_psnr, self.best_step = psnr, self.step
            self._snapshot(Path(self.config.out))
        self._snapshot(Path(self.config.out) / "last")
        _save(curves(self.history, self.references), self.folder / "curves.png")
        _save(self._samples(), self.folder / "samples.png")

    def save(self) -> None:
        """Write the whole state atomically."""
        state = {
            "step": self.step,
            "network": self.trained.network.state_dict(),
            "average": self.validated.network.state_dict(),
            "optimizer": self.adam.state_dict(),
            "others": [other.state_dict() for other in self.others],
            "scaler": self.scaler.state_dict(),
            "best_step": self.best_step,
            "best_psnr": self.best_psnr,
            "history": self.history,
            "started_from": self.started_from,
        }
        write_atomically(self.folder / "state.pt", lambda file: torch.save(state, file))

    def claim(self) -> None:
        """Write down whose folder this is, before anything else is written to it."""
        text = json.dumps(fingerprint(self.config), indent=1)
        write_atomically(self.folder / "config.json", lambda file: file.write(text.encode()))

    def _set_rates(self) -> None:
        chosen = rates(self.config, self.step, len(self.adam.param_groups))
        for group in self.adam.param_groups:
            group["betas"] = (chosen.momentum, group["betas"][1])
        for stepper in (self.adam, *self.others):
            for group, rate in zip(stepper.param_groups, chosen.groups, strict=True):
                group["lr"] = rate

    def _snapshot(self, folder: Path) -> None:
        config = self.config
        record = {
            **fingerprint(config),
            **({"start_sha256": self.started_from} if config.start else {}),
            "steps": config.steps,
            "anneal": config.optimisation.anneal,
            "step": self.step,
            "best_step": self.best_step,
            "validation_psnr": self.history[-1]["validation_psnr"],
            **{f"validation_psnr_{name}": figure for name, figure in self.references.items()},
            "torch": torch.__version__,
        }
        if self.cost is None:
            self.cost = self.validated.network.cost()
        for phase in self.phases:
            first = phase == self.phases[0]
            card = Card(
                config.model_name if first else f"{config.model_name}-{phase}",
                config.licence,
                config.trained_on,
                phase=phase,
                normalisation=config.normalisation,
                training=record,
            )
            place, half = folder if first else folder / phase, config.keeping.half
            save(place, self.validated.network, card, self.cost, half=half)

    def _begun(self) -> bool:
        return (self.folder / "state.pt").exists()

    def _resume(self) -> None:
        if not self._begun():
            return
        state = torch.load(self.folder / "state.pt", map_location=self.device, weights_only=True)
        self.trained.network.load_state_dict(state["network"])
        self.validated.network.load_state_dict(state["average"])
        self.adam.load_state_dict(state["optimizer"])
        for other, theirs in zip(self.others, state.get("others", ()), strict=True):
            other.load_state_dict(theirs)
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.best_step, self.best_psnr = state["best_step"], state["best_psnr"]
        self.history = state["history"]
        self.started_from = state.get("started_from", "")
        log.info("going on at step %d of %s", self.step, self.config.out)

    @torch.no_grad()
    def _average(self) -> None:
        # Early on the average follows the weights, else it would drag the initial ones along.
        decay = min(self.config.optimisation.average, (1 + self.step) / (10 + self.step))
        averaged, trained = self.validated, self.trained
        for mean, now in zip(averaged.parameters(), trained.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        for kept, new in zip(averaged.buffers(), trained.buffers(), strict=True):
            kept.copy_(new)

    @torch.no_grad()
    def _psnr(self, predict: Callable[[Batch], Tensor]) -> float:
        """Return the PSNR in dB of the dtype's range over all validation crops, rims left out."""
        total, count = 0.0, 0
        for batch in self.held_out:
            difference = self._inner(predict(batch) - batch.target)
            total += float(difference.double().square().sum())
            count += difference.numel()
        mse = total / count / self.shades.range**2
        return -10 * math.log10(mse) if mse > 0 else math.inf

    def _predicted(self, batch: Batch) -> Tensor:
        self.validated.eval()
        with self._autocast():
            answer: Tensor = self.validated(batch.coarse, batch.factor, batch.phase)
        return answer.float()

    def _interpolated(self, batch: Batch, kernel: str) -> Tensor:
        return interpolated(
            batch.coarse,
            batch.factor,
            batch.phase,
            kernel,
            lateral=self.config.network.lateral,
        )

    @torch.no_grad()
    def _samples(self) -> Picture:
        """Draw the slices in which restoring shows of some validation crops."""
        rows = [
            [self._slice(x) for x in (batch.coarse, self._predicted(batch), batch.target)]
            for batch in self.held_out[:SHOWN]
        ]
        return side_by_side(rows, ("input", "prediction", "target"))

    def _slice(self, x: Tensor) -> Any:
        """Return the middle section of what is made finer within sections, else an xz slice."""
        axis = 2 if self.config.network.lateral else 3
        middle = x[:1, :1].select(axis, x.shape[axis] // 2)[0, 0]
        return self.shades.to_unit(middle).cpu().numpy()

    def _moved(self, batch: Batch) -> Batch:
        coarse = batch.coarse.to(self.device, non_blocking=True)
        target = batch.target.to(self.device, non_blocking=True)
        return replace(batch, coarse=coarse, target=target)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self.config.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def _inner(self, x: Tensor) -> Tensor:
        """Leave the rims out."""
        return inner(x, self.config.border)


def require_free(config: TrainConfig) -> None:
    """Refuse a folder that holds something else than this training.

    Raises:
        TargetConflictError: it holds another training, or a checkpoint that is none of ours.
    """
    out = Path(config.out)
    try:
        theirs = json.loads((out / "training" / "config.json").read_text())
    except FileNotFoundError:
        if (out / MODEL_FILE).exists():
            raise TargetConflictError(
                f"{out} holds a checkpoint, but no training that could go on; choose another out "
                "folder"
            ) from None
        return
    found = differences(fingerprint(config), theirs)
    if found:
        raise TargetConflictError(
            f"{out} holds the training of another config ({found}); choose another out folder"
        )


def inner(x: Tensor, border: Triple) -> Tensor:
    """Leave rims out: (b, 1, z, y, x), smaller by ``border`` at every side."""
    z, y, w = (slice(b, n - b) for b, n in zip(border, x.shape[2:], strict=True))
    return x[:, :, z, y, w]


def _save(picture: Picture, path: Path) -> None:
    write_atomically(path, lambda file: picture.save(file, "PNG"))

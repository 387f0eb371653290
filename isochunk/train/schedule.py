"""Stages, learning rates and momentum as functions of the step, so that a resumed run agrees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from isochunk.train.config import Optimisation, TrainConfig, TrainStage

MOMENTUM = 0.9
"""Adam's first decay outside ``onecycle``."""
RISE = 0.3
"""Part of a cycle in which the rate rises; this and the next three are fastai's defaults."""
START, END = 25.0, 2.5e5
"""The highest rate of a cycle, relative to its first and to its last."""
MOMENTUM_RANGE = (0.95, 0.85)
"""Momentum at either end of a cycle, and where the rate is highest."""


@dataclass(frozen=True, slots=True)
class ScheduledStage:
    """A stage and its steps."""

    stage: TrainStage
    """Its crops and rates."""
    first: int
    """First step."""
    stop: int
    """One past the last step."""


@dataclass(frozen=True, slots=True)
class StepRates:
    """How far a step goes."""

    groups: tuple[float, ...]
    """Learning rate of each group of layers, first layers first."""
    momentum: float
    """Adam's first decay."""


def scheduled_stages(config: TrainConfig) -> tuple[ScheduledStage, ...]:
    """Lay the stages of a training on its steps; one stage where it names none.

    A stage that shows a share of the crops takes ``share / batch`` of the steps.
    """
    rate = config.optimisation.lr
    stages = config.stages or (TrainStage(1, config.patch, config.batch, rate, rate),)
    weights = [stage.share / stage.batch for stage in stages]
    ends = [round(config.steps * part / sum(weights)) for part in accumulate(weights)]
    return tuple(
        ScheduledStage(stage, first, stop)
        for stage, first, stop in zip(stages, [0, *ends], ends)  # noqa: B905
    )


def stage_index(config: TrainConfig, step: int) -> int:
    """Return the place of the stage to which a step belongs."""
    stages = scheduled_stages(config)
    return next((i for i, stage in enumerate(stages) if step < stage.stop), len(stages) - 1)


def rates(config: TrainConfig, step: int, groups: int) -> StepRates:
    """Return the rates of a step.

    Args:
        config: the training.
        step: counted from 0.
        groups: groups of layers; the rates between the first and the last are spaced evenly in
            their logarithm, and all but the last are 0 while the encoder is frozen.
    """
    scheduled = scheduled_stages(config)[stage_index(config, step)]
    stage, momentum = scheduled.stage, MOMENTUM
    if config.optimisation.schedule == "onecycle":
        part, momentum = one_cycle(step - scheduled.first, scheduled.stop - scheduled.first)
    else:
        part = learning_rate(config.optimisation, step, config.steps) / config.optimisation.lr
    if groups == 1 or stage.encoder_lr == 0:
        highest = [0.0] * (groups - 1) + [stage.lr]
    else:
        growth = (stage.lr / stage.encoder_lr) ** (1 / (groups - 1))
        highest = [stage.encoder_lr * growth**i for i in range(groups)]
    return StepRates(tuple(part * rate for rate in highest), momentum)


def learning_rate(optimisation: Optimisation, step: int, steps: int) -> float:
    """Return the learning rate of a step for the schedules other than ``onecycle``."""
    rate = optimisation.lr * min(1.0, (step + 1) / max(1, optimisation.warmup))
    rate *= min(1.0, (steps - step) / max(1, optimisation.anneal))
    if optimisation.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    if optimisation.schedule == "sqrt":
        return rate / math.sqrt(1 + step // optimisation.period)
    return rate


def one_cycle(step: int, steps: int) -> tuple[float, float]:
    """Return the rate, relative to its highest, and the momentum of a step of a cycle.

    Both follow half a cosine up to the turn and another half down from it (Smith 2018,
    arXiv:1803.09820, in fastai's form).
    """
    done = step / max(1, steps - 1)
    outer, inner = MOMENTUM_RANGE
    if done < RISE:
        part = _eased(done / RISE)
        return 1 / START + (1 - 1 / START) * part, outer + (inner - outer) * part
    part = _eased((done - RISE) / (1 - RISE))
    return 1 + (1 / END - 1) * part, inner + (outer - inner) * part


def _eased(part: float) -> float:
    return 0.5 * (1 - math.cos(math.pi * part))

"""The models that are judged, made ready for each test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from isochunk.core.consistency import require_consistent
from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import Factor
from isochunk.core.option_names import option
from isochunk.core.spec import AXIAL, ModelSpec, Phase, Plane, VolumeSpec
from isochunk.errors import ModelError, UsageError
from isochunk.evaluation.restore import CONSISTENT
from isochunk.evaluation.without_truth.config import JudgeConfig
from isochunk.models.interface import Predictor
from isochunk.models.interpolation import INTERPOLATIONS, Interpolation, interpolation_spec
from isochunk.models.load import Runtime, describe, load
from isochunk.planning.intensity import measure_intensity
from isochunk.storage.volume import Volume

ALWAYS_JUDGED = ("linear", "cubic")
"""Interpolations that every evaluation without truth includes; ``cubic`` is compared with."""

ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is asked of every model."""

    factor: Fraction
    """Target voxels per section."""
    degradation: Degradation
    """How sections came about."""
    specs: Mapping[str, ModelSpec]
    """What is known of each model, by name, factors resolved."""
    fixed: frozenset[str] = frozenset()
    """Those that were built for this factor and take no other."""
    consistent: Mapping[str, str] = field(default_factory=dict)
    """Models behind the names of those that are made consistent with their input."""

    @property
    def phase(self) -> Phase:
        """Where sections lie."""
        return PHASES[self.degradation]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model ready to be judged."""

    name: str
    """Of :attr:`Setup.specs`."""
    restore: Predictor
    """Restores sections, as a run does."""
    lateral: Predictor
    """Restores a lateral axis, on slices that hold it and the other lateral one."""
    spread: Predictor | None
    """Restores sections that are twice as far apart; None where its factor is fixed."""


def set_up(config: JudgeConfig, source: VolumeSpec) -> Setup:
    """Describe the models, and find the factor and the degradation that suit the source.

    Raises:
        UsageError: the source is isotropic already, or the factor is not above 1.
        ModelError: a model cannot be loaded, does not fit the source or the degradation, or some
            models were made for means and others for samples; or one cannot be made consistent.
    """
    z, y, x = source.spacing
    if z <= max(y, x):
        raise UsageError(
            f"{source.url} has voxels of {source.spacing} nm (z,y,x): its sections are no thicker "
            "than its pixels, so there is nothing to make isotropic; evaluate with --truth, or "
            f"correct {option('source_spacing', 'Z,Y,X')}"
        )
    factor = z / x if config.factor is None else config.factor
    if factor <= 1:
        raise UsageError(f"factor {factor} must be more than 1 target voxel per section")
    described = {name: _describe(name, config) for name in dict.fromkeys(config.models)}
    degradation = config.degradation or _degradation_of(described)
    names = dict.fromkeys((*ALWAYS_JUDGED, *config.models))
    specs = {
        name: described.get(name) or interpolation_spec(name, PHASES[degradation]) for name in names
    }
    for spec in specs.values():
        _require_fit(spec, factor, degradation, f"{source.url} has voxels of {source.spacing} nm")
    resolved = {name: spec.for_factor((factor, ONE, ONE)) for name, spec in specs.items()}
    consistent = _made_consistent(resolved) if config.consistent else {}
    resolved |= {name: resolved[model] for name, model in consistent.items()}
    fixed = {name for name, spec in specs.items() if spec.factor[0] is not None}
    fixed |= {name for name, model in consistent.items() if model in fixed}
    return Setup(factor, degradation, resolved, frozenset(fixed), consistent)


def load_candidate(name: str, setup: Setup, config: JudgeConfig, source: Volume) -> Candidate:
    """Load a model for each test.

    Args:
        name: of :attr:`Setup.specs`.
        setup: what is asked of it.
        config: device and trust.
        source: the volume whose intensities are those of a run.
    """
    spec = setup.specs[name]
    twice: Factor = (2 * setup.factor, ONE, ONE)
    model, consistent = setup.consistent.get(name, name), name in setup.consistent
    if model in INTERPOLATIONS:
        same = Interpolation(spec, consistent=consistent)
        wide = interpolation_spec(model, setup.phase).for_factor(twice)
        return Candidate(name, same, same, Interpolation(wide, consistent=consistent))
    intensity = measure_intensity(source, spec.normalisation)

    def made(factor: Factor, plane: Plane | None) -> Predictor:
        return load(
            model,
            Runtime(
                factor=factor,
                intensity=intensity,
                dtype=source.spec.dtype,
                device=config.device,
                trust=config.trust,
                allow_inexact=True,  # seams cost what they cost in the figures
                consistent=consistent,
                plane=plane,
            ),
        )

    axial = spec.plane in AXIAL
    plane = spec.plane if axial else None
    restore = made(spec.resolved_factor, plane)
    lateral = made(spec.resolved_factor, "xz") if axial and plane != "xz" else restore
    spread = None if name in setup.fixed else made(twice, plane)
    return Candidate(name, restore, lateral, spread)


def needs_volumes(spec: ModelSpec) -> bool:
    """Tell whether a model looks along all axes, and so needs all but z to be of one spacing."""
    return spec.plane == "3d" and spec.arch not in INTERPOLATIONS


def _describe(name: str, config: JudgeConfig) -> ModelSpec | None:
    """Return what a network is, its factor still open; None for an interpolation."""
    if name in INTERPOLATIONS:
        return None if name != "identity" else interpolation_spec(name)
    spec = describe(name, trust=config.trust)
    if config.plane is not None and spec.plane in AXIAL:
        spec = spec.on_plane(config.plane)
    return spec


def _made_consistent(specs: Mapping[str, ModelSpec]) -> dict[str, str]:
    """Return the models that are judged once more, by the names that they then have.

    Raises:
        ModelError: one cannot be made consistent.
    """
    for spec in specs.values():
        require_consistent(spec)
    return {f"{name} {CONSISTENT}": name for name in specs}


def _degradation_of(described: Mapping[str, ModelSpec | None]) -> Degradation:
    """Return how sections came about that all models were made for.

    Raises:
        ModelError: they were made for different ones.
    """
    phases = {spec.phase: name for name, spec in described.items() if spec is not None}
    if len(phases) > 1:
        raise ModelError(
            f"{phases['mean']} was made for sections that are means and {phases['sample']} for "
            "samples; a volume's sections are one or the other: judge them apart"
        )
    kinds: dict[Phase, Literal["avg", "skip"]] = {"mean": "avg", "sample": "skip"}
    return kinds[next(iter(phases), "mean")]


def _require_fit(spec: ModelSpec, factor: Fraction, degradation: Degradation, what: str) -> None:
    """Check that a model restores z, by this factor, of such sections.

    Raises:
        ModelError: it does not.
    """
    own, y, _ = spec.factor
    if own == 1 and y != 1:
        raise ModelError(
            f"model {spec.name!r} restores y and x of sections, and what can be judged without a "
            "truth is z; evaluate it with --truth"
        )
    if own is not None and own != factor:
        raise ModelError(
            f"model {spec.name!r} has factor {own} along z, but {what} (z,y,x) and is judged at "
            f"factor {factor}; choose another --model, or --factor {own} if its voxels need not be "
            "isotropic"
        )
    if spec.phase != PHASES[degradation]:
        trained = next(kind for kind, phase in PHASES.items() if phase == spec.phase)
        raise ModelError(
            f"model {spec.name!r} was made for sections of degradation {trained!r}, not "
            f"{degradation!r}; choose --degradation {trained}"
        )

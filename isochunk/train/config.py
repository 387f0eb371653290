"""What a training run is, and the recipes that are committed.

A recipe is a TOML file of :class:`TrainConfig` fields. What it leaves out is the paper's
(Heinrich et al. 2017).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from isochunk.errors import UsageError
from isochunk.geometry import AXES, Triple, triple
from isochunk.models.fsrcnn import FSRCNNConfig
from isochunk.models.srunet import SRUNetConfig
from isochunk.spec import Normalisation
from isochunk.train.degrade import Augmentation, Degradation

Mode: TypeAlias = Literal["supervised"]
Schedule: TypeAlias = Literal["sqrt", "cosine"]
NetworkConfig: TypeAlias = SRUNetConfig | FSRCNNConfig

ARCHS: dict[str, type[SRUNetConfig] | type[FSRCNNConfig]] = {
    "srunet": SRUNetConfig,
    "fsrcnn": FSRCNNConfig,
}
"""Networks that can be trained, by the name ``--arch`` takes."""


@dataclass(frozen=True, slots=True)
class Optimisation:
    """How weights are changed: Adam on the mean squared error."""

    lr: float = 1e-4
    """Learning rate at the first step (Heinrich et al.)."""
    schedule: Schedule = "sqrt"
    """``sqrt``: lr / sqrt(1 + floor(step / period)); ``cosine``: to zero at the last step."""
    period: int = 10_000
    """Steps between drops of the ``sqrt`` schedule; the paper gives no number."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly; none in the paper."""
    anneal: int = 0
    """Last steps over which the rate falls linearly to zero as well; none in the paper."""
    average: float = 0.0
    """Decay of the moving average of the weights that is validated and kept; 0 in the paper."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a number that cannot train.
        """
        if self.schedule not in get_args(Schedule):
            raise UsageError(f"schedule {self.schedule!r} is unknown; choose {get_args(Schedule)}")
        if not (self.lr > 0 and self.period >= 1 and min(self.warmup, self.anneal) >= 0):
            raise UsageError(
                "training needs lr > 0, period >= 1, warmup >= 0 and anneal >= 0; got "
                f"{self.lr}, {self.period}, {self.warmup} and {self.anneal}"
            )
        if not 0 <= self.average < 1:
            raise UsageError(f"average {self.average} of the weights must be in 0 <= average < 1")


@dataclass(frozen=True, slots=True)
class Keeping:
    """How often a run is judged and saved."""

    validate_every: int = 500
    """Steps between validations."""
    crops: int = 16
    """Fixed validation crops."""
    save_every: int = 500
    """Steps between saves of the whole state; a killed run repeats at most these."""


NO_AUGMENTATION = Augmentation()
PAPER_OPTIMISATION = Optimisation()
DEFAULT_KEEPING = Keeping()

PARTS = {"augmentation": Augmentation, "optimisation": Optimisation, "keeping": Keeping}
"""Fields of a config that are tables of their own."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Supervised training of one network; defaults are the paper's where it gives a number."""

    sources: tuple[str, ...]
    """URLs of isotropic volumes; crops come from each in proportion to its size."""
    out: str
    """Folder that becomes the checkpoint; training's own state lies in ``out/training``."""
    network: NetworkConfig
    """Which network, with all hyperparameters; its factor is the training's."""
    name: str = ""
    """Name of the model; the last part of ``out`` where empty."""
    mode: Mode = "supervised"
    """Supervised: target crops are isotropic, their sections are made on the fly."""
    degradation: Degradation = "avg"
    """How sections are made."""
    steps: int = 290_000
    """Steps altogether, resumed ones included."""
    patch: Triple = (64, 64, 64)
    """Target voxels of a crop."""
    batch: int = 6
    """Crops per step."""
    averages: tuple[Triple, ...] = ((1, 1, 1),)
    """Blocks of stored voxels averaged before anything else; each crop draws one of them."""
    normalisation: Normalisation = "range"
    """Global intensity map; see :func:`isochunk.intensity.measure_intensity`."""
    augmentation: Augmentation = NO_AUGMENTATION
    """How crops are varied beyond flips and transposition; not at all by default."""
    border: Triple = (0, 0, 0)
    """Target voxels at each side left out of loss and validation, since padding spoils them."""
    split_axis: int = 2
    """Axis along which volumes are split 70/15/15: 0, 1, 2 are z, y, x."""
    optimisation: Optimisation = PAPER_OPTIMISATION
    """How weights are changed."""
    keeping: Keeping = DEFAULT_KEEPING
    """How often the run is judged and saved."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Seed of the initial weights and of every crop."""
    licence: str = ""
    """Licence the weights are given."""
    trained_on: str = ""
    """Data in words, with attribution, for the checkpoint."""

    def __post_init__(self) -> None:
        """Check what can be checked without reading a volume.

        Raises:
            UsageError: a value that cannot be trained with; it says which.
        """
        _require(self.mode in get_args(Mode), f"mode {self.mode!r} is unknown; choose supervised")
        _require(bool(self.sources), "no source given; name at least one isotropic volume")
        _require(bool(self.averages), "averages is empty; write [[1, 1, 1]] for none")
        _require(self.steps >= 1 and self.batch >= 1, "steps and batch must be at least 1")
        _require(self.split_axis in (0, 1, 2), f"split_axis {self.split_axis} is not 0, 1 or 2")
        if self.patch[0] % self.network.factor:
            raise UsageError(
                f"patch of {self.patch[0]} voxels along z is no multiple of the network's factor "
                f"{self.network.factor}; choose e.g. {self.network.factor * 16}"
            )
        _require(
            self.patch[1] == self.patch[2],
            f"patch {self.patch} must be square in y and x, since crops are transposed",
        )
        for axis, extent, rim in zip(AXES, self.patch, self.border, strict=True):
            if extent <= 2 * rim:
                raise UsageError(
                    f"border {rim} leaves nothing of a patch of {extent} voxels along {axis}; "
                    "choose a larger patch or a smaller border"
                )

    @property
    def arch(self) -> str:
        """Name of the network's architecture."""
        return next(name for name, kind in ARCHS.items() if isinstance(self.network, kind))

    @property
    def model_name(self) -> str:
        """Name the checkpoint gets."""
        return self.name or Path(self.out).name


def config_from_table(table: Mapping[str, Any]) -> TrainConfig:
    """Make a config of what a TOML file or the command line says.

    Args:
        table: fields of :class:`TrainConfig`; ``arch`` and ``factor`` beside a table
            ``network`` of its hyperparameters. ``network.variant`` is ``paper`` (default) or
            ``compact``; single kernels given there replace the variant's.

    Raises:
        UsageError: a field is unknown or missing, or its value does not fit.
    """
    values = dict(table)
    network = _network(
        values.pop("arch", "srunet"), values.pop("factor", None), values.pop("network", {})
    )
    _refuse_unknown(values, TrainConfig, "training")
    for key in ("sources", "out"):
        _require(key in values, f"training needs {key!r}")
    try:
        for key, kind in PARTS.items():
            if key in values:
                _refuse_unknown(values[key], kind, key)
                values[key] = kind(**values[key])
        for key in ("patch", "border"):
            if key in values:
                values[key] = triple(values[key])
        if "averages" in values:
            values["averages"] = tuple(map(triple, values["averages"]))
        values["sources"] = tuple(values["sources"])
        return TrainConfig(network=network, **values)
    except UsageError:
        raise
    except (TypeError, ValueError) as problem:
        raise UsageError(f"training: a field has a value of the wrong kind: {problem}") from None


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe as the table that :func:`config_from_table` takes.

    Args:
        name: a committed recipe's name, or the path of a TOML file.

    Raises:
        UsageError: there is no such recipe, or it is no TOML.
    """
    committed = files("isochunk.train").joinpath("recipes")
    found = committed.joinpath(f"{name}.toml")
    path = Path(name)
    try:
        text = (found if found.is_file() else path).read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError:
        have = sorted(Path(entry.name).stem for entry in committed.iterdir())
        raise UsageError(
            f"no recipe {name!r}; there are {', '.join(have)}, or name a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"recipe {name!r} is no valid TOML: {problem}") from None


def fingerprint(config: TrainConfig) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one that is continued.

    Everything but where it runs, how often it is looked at, what is only words, and its end:
    with the ``sqrt`` schedule, ``steps`` and ``anneal`` may be chosen while it runs.
    """
    told = {"arch": config.arch, **asdict(config)}
    for name in ("out", "name", "device", "keeping", "licence", "trained_on"):
        del told[name]
    if config.optimisation.schedule == "sqrt":
        del told["steps"], told["optimisation"]["anneal"]
    return told


def _network(arch: str, factor: int | None, table: Mapping[str, Any]) -> NetworkConfig:
    if arch not in ARCHS:
        raise UsageError(f"arch {arch!r} cannot be trained; choose {', '.join(ARCHS)}")
    kind = ARCHS[arch]
    given = dict(table)
    if factor is not None and given.setdefault("factor", factor) != factor:
        raise UsageError(f"factor {factor} and network.factor {given['factor']} differ; give one")
    variant = given.pop("variant", "paper")
    _require(
        variant in ("paper", "compact"),
        f"network variant {variant!r} is unknown; choose paper or compact",
    )
    _refuse_unknown(given, kind, f"network {arch}")
    kernels = {key: _tuples(value) for key, value in given.items() if isinstance(value, list)}
    plain = {key: value for key, value in given.items() if key not in kernels}
    residual = plain.pop("residual", "none")
    try:
        base = getattr(kind, variant)(**plain)
    except TypeError:
        wanted = [
            name
            for name, parameter in signature(getattr(kind, variant)).parameters.items()
            if parameter.default is parameter.empty
        ]
        raise UsageError(
            f"network {arch} needs {', '.join(wanted)}; got {', '.join(plain) or 'none of them'}; "
            "give them, or a recipe"
        ) from None
    made: NetworkConfig = replace(base, residual=residual, **kernels)
    return made


def _tuples(value: Any) -> Any:  # noqa: ANN401
    """Turn TOML's nested lists into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _refuse_unknown(values: Mapping[str, Any], kind: type[Any], what: str) -> None:
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(values) - known - {"arch", "factor"})
    if unknown:
        raise UsageError(
            f"{what}: unknown field {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )


def _require(condition: object, message: str) -> None:
    if not condition:
        raise UsageError(message)

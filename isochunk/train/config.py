"""What a training run is; what its fields may be, checked without reading a volume."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from isochunk.core.codec import LATER
from isochunk.core.degradation import Degradation, degradations_of, phase_of
from isochunk.core.geometry import AXES, Triple
from isochunk.core.spec import Normalisation
from isochunk.core.text_forms import read_box, read_window
from isochunk.core.window import Window
from isochunk.errors import UsageError
from isochunk.models.network import NetworkConfig
from isochunk.models.registry import architecture_of
from isochunk.train.augment import Augmentation
from isochunk.train.crappify import CRAPPIFIERS

Mode: TypeAlias = Literal["supervised", "self", "self3d"]
Optimiser: TypeAlias = Literal["adam", "muon"]
Schedule: TypeAlias = Literal["constant", "sqrt", "cosine", "onecycle"]
Pixel: TypeAlias = Literal["mse", "l1", "psnr"]
Perceptual: TypeAlias = Literal["none", "pdl", "dists"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]


OPTION = MappingProxyType({"option": True})
"""Marks a field that is an option of ``isochunk train``; its docstring is the help."""


def _choose(what: str, value: str, among: Any) -> None:
    if value not in get_args(among):
        raise UsageError(f"{what} {value!r} is unknown; choose one of {', '.join(get_args(among))}")


@dataclass(frozen=True, slots=True)
class Optimisation:
    """How weights are changed; rates are functions of the step."""

    optimiser: Optimiser = field(default="adam", metadata=OPTION | LATER)
    """``adam``, or ``muon`` for kernels between maps and Adam for the rest, with the same rates."""
    lr: float = field(default=1e-4, metadata=OPTION)
    """Learning rate; the highest of the ``onecycle`` schedule, else that of the first step."""
    schedule: Schedule = "sqrt"
    """``sqrt``: lr / sqrt(1 + floor(step / period)); ``cosine``: to zero at the last step;
    ``onecycle``: up and down again in each stage, momentum the other way round (Smith 2018);
    ``constant``: as it is."""
    period: int = 10_000
    """Steps between drops of the ``sqrt`` schedule; Heinrich et al. give no number."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly."""
    anneal: int = 0
    """Last steps over which the rate falls linearly to zero as well."""
    clip: float = field(default=0.0, metadata=LATER)
    """Norm to which gradients that are longer are shortened; 0 for none."""
    average: float = 0.0
    """Decay of the moving average of the weights that is validated and kept; 0 for none."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a number that cannot train.
        """
        _choose("optimiser", self.optimiser, Optimiser)
        _choose("schedule", self.schedule, Schedule)
        if not (self.lr > 0 and self.period >= 1 and min(self.warmup, self.anneal) >= 0):
            raise UsageError(
                "training needs lr > 0, period >= 1, warmup >= 0 and anneal >= 0; got "
                f"{self.lr}, {self.period}, {self.warmup} and {self.anneal}"
            )
        if not 0 <= self.clip < math.inf:
            raise UsageError(f"clip {self.clip} must be a norm of at least 0")
        if not 0 <= self.average < 1:
            raise UsageError(f"average {self.average} of the weights must be in 0 <= average < 1")


@dataclass(frozen=True, slots=True)
class Loss:
    """What is made small: ``weight * pixel + perceptual_weight * perceptual``."""

    pixel: Pixel = "mse"
    """Mean squared or mean absolute error, in the model's values, or the logarithm of the first:
    crops of a hard ratio then count no more than those of an easy one."""
    weight: float = 1.0
    """Weight of the pixels' error."""
    perceptual: Perceptual = "none"
    """Distance between features of VGG16: ``pdl`` (Delbracio et al. 2020) or ``dists``."""
    perceptual_weight: float = 0.0
    """Weight of that distance."""
    vgg: str = field(default="", metadata=OPTION)
    """File of VGG16 weights; without one, training goes on with the pixels' error alone."""
    dists: str = field(default="", metadata=OPTION)
    """File of DISTS' weights, how much channels count; without one, all the same."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: an unknown name, or weights that make nothing small.
        """
        _choose("pixel loss", self.pixel, Pixel)
        _choose("perceptual loss", self.perceptual, Perceptual)
        if not (self.weight > 0 and self.perceptual_weight >= 0):
            raise UsageError(
                "a loss needs weight > 0 and perceptual_weight >= 0; got "
                f"{self.weight} and {self.perceptual_weight}"
            )


@dataclass(frozen=True, slots=True)
class TrainStage:
    """A part of a training with crops and rates of its own: progressive resizing."""

    share: float
    """Crops seen in it, relative to other stages: epochs."""
    patch: Triple
    """Target voxels of a crop."""
    batch: int
    """Crops per step."""
    lr: float
    """Highest learning rate of the decoder."""
    encoder_lr: float
    """Highest learning rate of the first layers; 0 keeps the encoder's weights as they are."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a number that cannot train.
        """
        numbers = (self.share, self.batch, self.lr, *self.patch)
        if min(numbers) <= 0 or self.encoder_lr < 0:
            raise UsageError(f"a stage needs positive numbers and encoder_lr >= 0; got {self}")


@dataclass(frozen=True, slots=True)
class Keeping:
    """How often a run is validated and saved."""

    validate_every: int = field(default=500, metadata=OPTION)
    """Steps between validations."""
    crops: int = 16
    """Fixed validation crops."""
    patch: Triple | None = None
    """Their target voxels, where the validation part of a volume is too narrow for ``patch``."""
    save_every: int = field(default=500, metadata=OPTION)
    """Steps between saves of the whole state; a killed run repeats at most these."""
    defects: bool = False
    """Whether the augmentation's defects happen to validation crops too, and so choose the best."""
    half: bool = False
    """Whether checkpoints hold half-precision weights, rounded as they are written."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a number below 1.
        """
        if min(self.validate_every, self.crops, self.save_every) < 1:
            raise UsageError(f"keeping needs numbers of at least 1; got {self}")


@dataclass(frozen=True, slots=True)
class FirstPass:
    """How mode ``self3d`` makes the volume isotropic that it then learns from."""

    slices: str = field(default="", metadata=OPTION)
    """Network for slices of the first pass of mode self3d: a shipped one's name, or a checkpoint;
    default: a niiv that the volume itself teaches."""
    slices_steps: int = field(default=3600, metadata=OPTION)
    """Steps of that niiv."""
    isotropic: str = field(default="", metadata=OPTION)
    """Volume that the first pass writes, or that a run of this source has written, on a cluster for
    example; default: isotropic.zarr in out."""
    box: str = field(default="", metadata=OPTION)
    """Source voxels z0:z1,y0:y1,x0:x1 that mode self3d makes isotropic; default: all."""


NO_AUGMENTATION = Augmentation()
PAPER_OPTIMISATION = Optimisation()
PAPER_LOSS = Loss()
DEFAULT_KEEPING = Keeping()
DEFAULT_FIRST_PASS = FirstPass()


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Training of one network.

    Crops have the network's own axes, the coarse one first. ``supervised``: those of the volume,
    which is isotropic. ``self``: the volume is anisotropic, and one of its fine axes, y or x, is
    made coarse; its z, coarse already, lies second. ``self3d``: the volume is anisotropic; a
    network for slices makes it isotropic first, and of that y or x is made coarse, so that the
    detail which is asked for was recorded, or z, so that the input is as recorded, in a crop of
    three where there are sections enough.
    """

    sources: tuple[str, ...]
    """URLs of volumes; see ``balance`` for how often crops come from each."""
    out: str = field(metadata=OPTION)
    """Folder that becomes the checkpoint; training's own state lies in its folder ``training``."""
    network: NetworkConfig
    """Which network, with all hyperparameters."""
    name: str = ""
    """Name of the model; the last part of ``out`` where empty."""
    mode: Mode = field(default="supervised", metadata=OPTION)
    """``supervised``: the source is isotropic; ``self``: it is not, and teaches itself, slices;
    ``self3d``: the same in two passes, for networks that see volumes."""
    factors: tuple[Fraction, ...] = field(default=(), metadata=OPTION)
    """Target voxels per section: 4, 9.5, 225/23, or several for anyz, niiv and a2i: 2,4,8, of which
    each step draws one; default: the network's own or, for mode self and self3d, how much coarser z
    is."""
    degradation: str = field(default="avg", metadata=OPTION)
    """How coarse input is made of a crop: avg, skip or psf; for anyz also avg+skip, of which each
    step draws one; for pssr em, fluorescence, gaussian, poisson or coarse."""
    steps: int = field(default=290_000, metadata=OPTION)
    """Steps altogether, resumed ones included."""
    patch: Triple = field(default=(64, 64, 64), metadata=OPTION)
    """Z,Y,X target voxels of a crop, the coarse axis first; of validation too, if in stages."""
    batch: int = field(default=6, metadata=OPTION)
    """Crops per step, over all processes."""
    stages: tuple[TrainStage, ...] = ()
    """Parts of the training with crops, batch and rates of their own; none: one."""
    averages: tuple[Triple, ...] = ((1, 1, 1),)
    """Blocks of stored voxels averaged before anything else; each crop draws one of them."""
    grey_window: str = field(default="", metadata=OPTION)
    """Stored values LOW,HIGH of the sources that become black and white, or auto to measure them in
    each; default: uint8 and uint16 are used as they are."""
    normalisation: Normalisation = "range"
    """Global intensity map; see :func:`isochunk.planning.intensity.measure_intensity`."""
    augmentation: Augmentation = NO_AUGMENTATION
    """How crops are varied beyond flips and transposition; not at all by default."""
    balance: float = field(default=1.0, metadata=LATER)
    """Crops come from each source in proportion to its size to this power: 0 for from all alike."""
    hardest_of: int = field(default=1, metadata=OPTION | LATER)
    """Places drawn for each crop, of which the one is taken where coarse sections lose most; more
    than 1 reads as many times as much."""
    border: Triple = (0, 0, 0)
    """Target voxels at each side left out of loss and validation, since padding spoils them."""
    split_axis: int = 2
    """Axis along which volumes are split 70/15/15: 0, 1, 2 are z, y, x."""
    loss: Loss = PAPER_LOSS
    """What is made small."""
    optimisation: Optimisation = PAPER_OPTIMISATION
    """How weights are changed."""
    keeping: Keeping = DEFAULT_KEEPING
    """How often the run is validated and saved."""
    sections: str = field(default="", metadata=OPTION | LATER)
    """Section table of a source, from ``inspect --out``, or ``auto`` to inspect all of them; no
    crop is taken where sections are lost, as far as there are other places."""
    first_pass: FirstPass = field(default=DEFAULT_FIRST_PASS, metadata=LATER)
    """What mode ``self3d`` does first."""
    start: str = field(default="", metadata=OPTION | LATER)
    """Checkpoint whose weights it starts from: a shipped one's name, or a folder; of the same
    factor and normalisation, and its hyperparameters where none are given; default: none."""
    encoder: str = field(default="", metadata=OPTION)
    """File of ResNet34 weights from which pssr's encoder starts; random ones without."""
    precision: Precision = field(default="fp32", metadata=OPTION)
    """Arithmetic of the layers: fp32, bf16 or fp16; weights and loss stay fp32."""
    device: str = field(default="auto", metadata=OPTION)
    """auto, cpu or cuda."""
    seed: int = field(default=0, metadata=OPTION)
    """Seed of the initial weights and of every crop."""
    licence: str = field(default="", metadata=OPTION)
    """Licence the weights are given."""
    trained_on: str = field(default="", metadata=OPTION)
    """The data in words, with attribution."""

    def __post_init__(self) -> None:
        """Check what can be checked without reading a volume.

        Raises:
            UsageError: a value that cannot be trained with; it says which.
        """
        _choose("mode", self.mode, Mode)
        _choose("precision", self.precision, Precision)
        _require(bool(self.sources), "no source given; name at least one volume")
        self.read_window()
        _require(bool(self.averages), "averages is empty; write [[1, 1, 1]] for none")
        _require(self.steps >= 1 and self.batch >= 1, "steps and batch must be at least 1")
        _require(self.hardest_of >= 1, f"hardest_of {self.hardest_of} must be at least 1")
        _require(0 <= self.balance <= 1, f"balance {self.balance} must be in 0 <= balance <= 1")
        _require(self.split_axis in (0, 1, 2), f"split_axis {self.split_axis} is not 0, 1 or 2")
        self._check_task()
        self._check_factors()
        trained = {self.patch, *(stage.patch for stage in self.stages)}
        for patch in trained:
            self.network.require_training_patch(patch)
        for patch in {self.validation_patch, *trained}:
            self._check_patch(patch)

    def read_window(self) -> Window | Literal["auto"] | None:
        """Return the window that ``grey_window`` says; None where it is empty.

        Raises:
            UsageError: it cannot be read.
        """
        return read_window(self.grey_window, "grey_window") if self.grey_window else None

    def _check_task(self) -> None:
        network, lateral = self.network, self.network.lateral
        known = tuple(CRAPPIFIERS) if lateral else get_args(Degradation)
        named = degradations_of(self.degradation)
        if not set(named) <= set(known):
            raise UsageError(
                f"degradation {self.degradation!r} is unknown for {self.arch}; choose one of "
                f"{', '.join(known)}"
            )
        _require(
            len(named) == 1 or network.told_phase,
            f"{self.arch} is not told how sections came about, so it learns one degradation, not "
            f"{self.degradation}; choose one of them, or anyz",
        )
        _require(
            not lateral or self.normalisation == "range",
            f"{self.arch}'s inputs are made of values in 0..1; choose normalisation range",
        )
        _require(
            network.resnet_encoder or not self.encoder,
            f"{self.arch} has no encoder that starts from a file; only pssr has one",
        )
        _require(
            not (self.start and self.encoder),
            "start gives all weights, so encoder gives none; leave one of them out",
        )
        phase = phase_of(named[0])
        _require(
            network.own_phase in (None, phase),
            f"sections of degradation {self.degradation!r} lie at network phase {phase!r}; leave "
            "phase out",
        )
        varied = self.augmentation
        _require(
            not lateral or not (varied.damages or varied.margin),
            f"defects such as jitter and missing are for coarse sections, which {self.arch} does "
            "not make",
        )
        _require(
            not lateral or self.hardest_of == 1,
            f"hardest_of looks for detail along z, and {self.arch} restores none; leave it out",
        )
        _require(
            not varied.margin or self.mode == "supervised",
            "margin is for crops that are as fine along y as along x: mode supervised",
        )
        _require(
            not (varied.rotation or varied.zoom)
            or (self.mode == "supervised" and self.patch[1] == self.patch[2]),
            "rotation and zoom are for crops that are square in y and x, of mode supervised",
        )
        _require(
            self.mode == "self3d" or self.first_pass == DEFAULT_FIRST_PASS,
            "slices, slices-steps, isotropic and box say how mode self3d begins; leave them out, "
            "or choose that mode",
        )
        if self.mode == "supervised":
            return
        _require(
            not lateral,
            f"{self.arch} makes y and x finer, so it needs a volume that is fine there: mode "
            "supervised",
        )
        if self.mode == "self3d":
            self._check_two_passes()
            return
        _require(
            network.planar,
            f"mode self trains {self.arch} on slices, so its kernels must not reach across them; "
            "choose network variant planar, mode self3d, or mode supervised with an isotropic "
            "volume",
        )

    def _check_two_passes(self) -> None:
        _require(
            not self.network.planar,
            f"mode self3d trains networks that see volumes, and this {self.arch} sees slices; "
            "choose anyz, srunet or fsrcnn, or mode self",
        )
        _require(
            len(self.sources) == 1,
            f"mode self3d learns from one volume; got {len(self.sources)}: choose one",
        )
        _require(self.first_pass.slices_steps >= 1, "slices-steps must be at least 1")
        if self.first_pass.box:
            read_box(self.first_pass.box, "box")

    def _check_factors(self) -> None:
        _require(all(f >= 1 for f in self.factors), f"factors {_listed(self.factors)} below 1")
        own = self.network.own_factor
        if own is not None and any(f != own for f in self.factors):
            raise UsageError(
                f"{self.arch} has factor {own}, so it cannot be trained for "
                f"{_listed(self.factors)}; choose anyz, a2i or niiv, which take any factor"
            )
        if own is None and not self.factors and self.mode == "supervised":
            raise UsageError(f"supervised training of {self.arch} needs a factor; give one or more")

    def _check_patch(self, patch: Triple) -> None:
        self.network.require_patch(patch, self.factors)
        if self.mode != "self" and 1 != patch[1] != patch[2]:
            raise UsageError(
                f"patch {patch} must be square in y and x, since crops are transposed, or one "
                "slice: 1 along y"
            )
        for axis, extent, rim in zip(AXES, patch, self.border, strict=True):
            if extent <= 2 * rim:
                raise UsageError(
                    f"border {rim} leaves nothing of a patch of {extent} voxels along {axis}; "
                    "choose a larger patch or a smaller border"
                )

    @property
    def validation_patch(self) -> Triple:
        """Target voxels of a validation crop."""
        return self.keeping.patch or self.patch

    @property
    def arch(self) -> str:
        """Name of the network's architecture."""
        return architecture_of(self.network)

    @property
    def model_name(self) -> str:
        """Name the checkpoint gets."""
        return self.name or Path(self.out).name


def _listed(factors: tuple[Fraction, ...]) -> str:
    return ", ".join(map(str, factors))


def _require(condition: object, message: str) -> None:
    if not condition:
        raise UsageError(message)

"""Losses that compare what VGG16 sees in images, not their pixels.

``pdl``: the projected distribution loss of Delbracio et al. 2020 (arXiv 2012.09289), which A2I
adds to the mean absolute error. ``dists``: deep image structure and texture similarity of Ding et
al. 2020 (arXiv 2004.07728), which niiv adds to it. Weights come from files that the user names;
see :mod:`isochunk.train.vgg`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

from isochunk.errors import UsageError
from isochunk.train.vgg import LEAST_EXTENT, VGG16, WIDTHS, read_torch, read_vgg

log = logging.getLogger(__name__)

Perceptual: TypeAlias = Literal["pdl", "dists"]

CHANNELS = (3, *(widths[-1] for widths in WIDTHS))
"""Channels that DISTS compares: of the image itself, then of VGG's stages."""

STABLE = 1e-6
"""Added to numerators and denominators of DISTS, as by its authors."""


class PerceptualLoss(nn.Module):
    """Compares images; holds fixed weights only, and goes where the images are."""

    def __init__(self, vgg: VGG16) -> None:
        """Take the network that looks."""
        super().__init__()
        self.vgg = vgg

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar; 0 where the images are equal.

        Args:
            predicted: (n, 1, h, w) in [0, 1]; gradients flow into it.
            target: of the same shape; taken as given.

        Raises:
            UsageError: shapes differ, or are too small for VGG16.
        """
        if predicted.shape != target.shape or predicted.ndim != 4 or predicted.shape[1] != 1:  # noqa: PLR2004
            raise UsageError(
                f"images must be two of one shape (n, 1, h, w); got {tuple(predicted.shape)} and "
                f"{tuple(target.shape)}"
            )
        if min(predicted.shape[2:]) < LEAST_EXTENT:
            raise UsageError(
                f"images of {tuple(predicted.shape[2:])} pixels are too small for VGG16; at least "
                f"{LEAST_EXTENT} by {LEAST_EXTENT} are needed: choose a larger patch"
            )
        if self.vgg.mean.device != predicted.device:
            self.to(predicted.device)
        # In half precision squares overflow and covariances cancel.
        with torch.autocast(predicted.device.type, enabled=False):
            return self.compare(predicted.float(), target.detach().float()).mean()

    @abstractmethod
    def compare(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each image, (n,)."""


class PDL(PerceptualLoss):
    """How far apart the distributions of every feature's values are, wherever they lie."""

    def compare(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Sum over stages the mean over features of the 1D Wasserstein distance."""
        pairs = zip(self.vgg(predicted, max_pool), self.vgg(target, max_pool), strict=True)
        # Sorted values of equally many samples are matched best one to one.
        distances = [
            (a.flatten(2).sort(2).values - b.flatten(2).sort(2).values).abs() for a, b in pairs
        ]
        return torch.stack([d.mean((1, 2)) for d in distances]).sum(0)


class DISTS(PerceptualLoss):
    """1 - similarity of the means (texture) and of the covariances (structure) of features."""

    alpha: Tensor
    beta: Tensor

    def __init__(self, vgg: VGG16, alpha: Tensor, beta: Tensor) -> None:
        """Take how much each channel's texture and structure count, (sum(CHANNELS),) each."""
        super().__init__(vgg)
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha / total, persistent=False)
        self.register_buffer("beta", beta / total, persistent=False)

    def compare(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Weigh and sum both similarities over the channels of the image and of all stages."""
        textures, structures = [], []
        for a, b in zip(self._maps(predicted), self._maps(target), strict=True):
            mean_a, mean_b = a.mean(2), b.mean(2)
            a, b = a - mean_a[..., None], b - mean_b[..., None]
            spread = a.square().mean(2) + b.square().mean(2)
            textures.append((2 * mean_a * mean_b + STABLE) / (mean_a**2 + mean_b**2 + STABLE))
            structures.append((2 * (a * b).mean(2) + STABLE) / (spread + STABLE))
        similar = torch.cat(textures, 1) @ self.alpha + torch.cat(structures, 1) @ self.beta
        return 1 - similar

    def _maps(self, image: Tensor) -> list[Tensor]:
        """Return (n, c, pixels) of the image, as three equal channels, and of all stages."""
        seen = [image.expand(-1, 3, -1, -1), *self.vgg(image, l2_pool)]
        return [maps.flatten(2) for maps in seen]


def perceptual_loss(name: Perceptual, vgg: Path, dists: Path | None = None) -> PerceptualLoss:
    """Make a loss of files that the user names.

    Args:
        name: ``pdl`` or ``dists``.
        vgg: weights of VGG16; :mod:`isochunk.train.vgg` says of which kinds.
        dists: ``weights.pt`` of ``DISTS_pytorch`` 0.1 on PyPI, how much channels count; without
            it all count the same, which is not the published measure. Unused by ``pdl``.

    Returns:
        A module that maps predicted and target images, (n, 1, h, w) in [0, 1], to a scalar.

    Raises:
        UsageError: the name is unknown, or a file cannot be read or is not what it should be.
    """
    if name not in get_args(Perceptual):
        raise UsageError(
            f"perceptual loss {name!r} is unknown; choose one of {', '.join(get_args(Perceptual))}"
        )
    looking = VGG16(read_vgg(vgg))
    if name == "pdl":
        return PDL(looking)
    if dists is None:
        log.warning(
            "DISTS weighs all channels the same, since no file of its weights is given; this is "
            "a loss to train with, not the published measure"
        )
        return DISTS(looking, torch.ones(sum(CHANNELS)), torch.ones(sum(CHANNELS)))
    return DISTS(looking, *read_dists(dists))


def read_dists(path: Path) -> tuple[Tensor, Tensor]:
    """Read how much each channel's texture (alpha) and structure (beta) count in DISTS.

    Raises:
        UsageError: the file cannot be read, or does not hold two weights per channel.
    """
    state = read_torch(path)
    count = sum(CHANNELS)
    for name in ("alpha", "beta"):
        value = state.get(name)
        if not (isinstance(value, Tensor) and value.numel() == count and value.is_floating_point()):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"{name} of {path} is {got}, but DISTS has {count} channels; name weights.pt of "
                "DISTS_pytorch 0.1"
            )
    alpha, beta = (state[name].detach().float().flatten() for name in ("alpha", "beta"))
    if not (alpha.sum() + beta.sum() > 0 and bool(torch.cat([alpha, beta]).isfinite().all())):
        raise UsageError(f"weights of {path} are not finite with a sum above 0; name another file")
    return alpha, beta


def max_pool(x: Tensor) -> Tensor:
    """Halve height and width, rounded down, as VGG16 does."""
    return max_pool2d(x, 2)


def l2_pool(x: Tensor) -> Tensor:
    """Halve height and width, rounded up, by the root of the blurred square (Ding et al.)."""
    window = np.hanning(5)[1:-1]
    kernel = x.new_tensor(np.outer(window, window) / window.sum() ** 2)
    blurred = conv2d(
        x.square(), kernel.expand(x.shape[1], 1, 3, 3), stride=2, padding=1, groups=x.shape[1]
    )
    return (blurred + 1e-12).sqrt()  # the root has no slope at zero

"""What a training step applies: the network, its loss, and the interpolations it competes with.

Tensors are (b, 1, z, y, x), in the network's own axes.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from isochunk.core.geometry import Triple
from isochunk.core.spec import Phase
from isochunk.errors import UsageError
from isochunk.models.interpolation import whole_axis_taps
from isochunk.models.network import Corner, Network, NetworkConfig
from isochunk.models.registry import make
from isochunk.models.torch_interpolation import blended
from isochunk.train.config import Loss
from isochunk.train.data import Shades
from isochunk.train.perceptual import perceptual_loss


class Application(nn.Module):
    """A network as training calls it; a module, so that torch can share it among processes."""

    def __init__(self, network: Network) -> None:
        """Wrap a network."""
        super().__init__()
        self.network = network

    def forward(
        self,
        coarse: Tensor,
        factor: Fraction,
        phase: Phase,
        corner: Corner = (0, 0),
        target: Tensor | None = None,
    ) -> Tensor:
        """Restore whole crops, that are to be taken to lie at ``corner``; learn where told of it.

        Args:
            coarse: (b, 1, z, y, x).
            factor: target voxels per section.
            phase: where sections lie.
            corner: where networks that mind positions are to take crops to lie.
            target: what is to be learnt; None where the network is only asked.
        """
        if target is None:
            return self.network.restore_crops(coarse, factor, phase, corner)
        return self.network.learn_crops(coarse, target, factor, phase, corner)


def build(config: NetworkConfig, seed: int) -> Network:
    """Make a network with seeded initial weights; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(config)


def require_fit(network: Network, patch: Triple) -> None:
    """Refuse crops that do not fit a network's pooling.

    Raises:
        UsageError: an extent is no multiple of what the network needs.
    """
    needed = network.crop_multiple
    if any(n % m for n, m in zip(patch, needed, strict=True)):
        raise UsageError(
            f"patch {patch} does not fit the network's pooling; choose multiples of {needed} "
            "(z, y, x)"
        )


NO_ERROR = 1e-4
"""Mean squared error, in the model's values, below which less is no gain."""


class Criterion:
    """The loss of a training."""

    def __init__(self, loss: Loss, shades: Shades, device: torch.device) -> None:
        """Load what it needs; without a VGG file it is the pixels' error alone.

        Args:
            loss: which.
            shades: the model's values of black and of white, between which features are taken.
            device: where crops are.

        Raises:
            UsageError: the VGG file cannot be used.
        """
        self.loss = loss
        self.shades = shades
        errors: dict[str, Callable[[Tensor, Tensor], Tensor]]
        errors = {"mse": mse_loss, "l1": l1_loss, "psnr": _log_mse}
        self._pixel = errors[loss.pixel]
        self._perceptual = None
        if loss.perceptual != "none" and loss.vgg:
            dists = Path(loss.dists) if loss.dists else None
            self._perceptual = perceptual_loss(loss.perceptual, Path(loss.vgg), dists).to(device)

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of crops, a scalar."""
        total: Tensor = self.loss.weight * self._pixel(predicted, target)
        if self._perceptual is not None:
            seen = (self._images(predicted), self._images(target))
            total = total + self.loss.perceptual_weight * self._perceptual(*seen)
        return total

    def _images(self, x: Tensor) -> Tensor:
        """Return the planes in which restoring shows, (n, 1, h, w) of 0..1."""
        planes = x[:, :, 0] if x.shape[2] == 1 else x.movedim(3, 1).flatten(0, 1)
        return self.shades.to_unit(planes)


def _log_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Return what PSNR falls with; as a loss: Chen et al. 2021, HINet (arXiv 2105.06086)."""
    return (mse_loss(predicted, target) + NO_ERROR).log()


def interpolated(
    coarse: Tensor, factor: Fraction, phase: Phase, kernel: str, *, lateral: bool
) -> Tensor:
    """Return what interpolation makes of what a network sees, for comparison.

    Args:
        coarse: (b, 1, z, y, x).
        factor: target voxels per section, or per pixel where those become finer.
        phase: where sections lie.
        kernel: linear or cubic.
        lateral: whether y and x of the middle section become finer, not z.
    """
    if not lateral:
        return blended(coarse, whole_axis_taps(kernel, coarse.shape[2], factor, phase))
    middle = coarse.shape[2] // 2
    finer = coarse[:, :, middle : middle + 1]
    for axis in (3, 4):
        taps = whole_axis_taps(kernel, finer.shape[axis], factor)
        finer = blended(finer.transpose(2, axis), taps).transpose(2, axis)
    return finer

"""Muon: kernels of convolutions change by steps in which no direction is larger than another.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon): the momentum of a matrix is brought near the
closest matrix of orthogonal rows or columns. Liu et al. 2025 (arXiv 2502.16982): steps as long as
those of Adam, so that its rates do for both. Pethick et al. 2025 (arXiv 2502.07529): weights decay
such that they stay within a ball. torch's own takes matrices alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

MOMENTUM = 0.95
"""Decay of the mean of gradients; Nesterov's form."""
ITERATIONS = 5
"""Of Newton and Schulz's, which bring singular values to between 0.7 and 1.2."""
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5 in each."""
KERNEL, LIST = 4, 6
"""Axes of the kernel of a layer in 2D, and of a list of those of a layer in 3D."""
LENGTH = 0.2
"""Root mean square of the changes of a kernel, in rates: that of Adam (Liu et al.)."""
BOUND = 2.0
"""Singular value beyond which kernels do not grow, since they decay (Pethick et al. 2025): networks
that normalise nothing diverge without."""


def optimisers(groups: Sequence[Sequence[nn.Parameter]], name: str) -> tuple[Optimizer, ...]:
    """Return what changes the parameters of a network, each with a group for each of ``groups``.

    Args:
        groups: parameters whose rates differ.
        name: adam, or muon: then Adam is for what are no kernels between several maps.
    """
    fused = True if groups[0][0].is_cuda else None
    if name == "adam":
        return (Adam([{"params": list(group)} for group in groups], fused=fused),)
    kernels = [[p for p in group if joins_maps(p)] for group in groups]
    others = [[p for p in group if not joins_maps(p)] for group in groups]
    return (
        Adam([{"params": group} for group in others], fused=fused),
        Muon([{"params": group} for group in kernels]),
    )


def joins_maps(parameter: Tensor) -> bool:
    """Tell whether a parameter holds kernels, of several maps for several maps."""
    return parameter.ndim >= KERNEL and min(_layers(parameter).shape[1:3]) > 1


def _layers(kernel: Tensor) -> Tensor:
    """View kernels as those of several layers, (n, maps, maps, ...); one where they are no list."""
    return kernel if kernel.ndim == LIST else kernel[None]


class Muon(Optimizer):
    """Changes kernels; see the module."""

    def __init__(self, groups: Iterable[dict[str, list[nn.Parameter]]]) -> None:
        """Start without momentum; rates are set before each step."""
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change kernels by their gradients."""
        del closure  # torch's schedulers and scalers may give one; nothing here does
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is not None:
                    self._change(kernel, kernel.grad, group["lr"])

    def _change(self, kernel: nn.Parameter, gradient: Tensor, rate: float) -> None:
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        mean: Tensor = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        steps = _layers(gradient.lerp(mean, MOMENTUM)).flatten(2)
        length: float = rate * LENGTH * max(steps.shape[1:]) ** 0.5
        kernel.mul_(1 - length / BOUND)
        kernel.sub_(length * orthogonalised(steps).reshape(kernel.shape))


def orthogonalised(x: Tensor) -> Tensor:
    """Bring the singular values of matrices, (n, rows, columns), near 1."""
    if x.shape[1] > x.shape[2]:
        return orthogonalised(x.mT).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + torch.finfo(x.dtype).tiny ** 0.5)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x

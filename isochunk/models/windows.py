"""Attention within windows that lie on the absolute grid of the target, so that tiles agree."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

PixelRange: TypeAlias = tuple[int, int]
"""First and last pixel along one axis."""


class WindowAttention(nn.Module):
    """Attention among the pixels of each window of the grid, with a bias by relative position."""

    def __init__(self, maps: int, heads: int, window: int) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(maps, 3 * maps)
        self.project = nn.Linear(maps, maps)
        self.bias = nn.Parameter(torch.zeros(heads, (2 * window - 1) ** 2))
        nn.init.trunc_normal_(self.bias, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (n, z, x, c), both extents multiples of the window."""
        n, nz, nx, c = x.shape
        m, heads = self.window, self.heads
        windows = x.reshape(n, nz // m, m, nx // m, m, c).transpose(2, 3)
        q, k, v = (
            self.qkv(windows.reshape(-1, m * m, c))
            .reshape(-1, m * m, 3, heads, c // heads)
            .permute(2, 0, 3, 1, 4)
        )  # (windows, heads, pixels, c / heads) each
        at = torch.arange(m * m, device=x.device)
        z = at[:, None] // m - at // m
        w = at[:, None] % m - at % m
        bias = self.bias[:, (z + m - 1) * (2 * m - 1) + w + m - 1]  # (heads, pixels, pixels)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        seen = seen.transpose(1, 2).reshape(-1, m * m, c)
        joined: Tensor = self.project(seen).reshape(n, nz // m, nx // m, m, m, c)
        return joined.transpose(2, 3).reshape(n, nz, nx, c)


def whole_windows(pixels: PixelRange, window: int, shift: int = 0) -> PixelRange:
    """Return the pixels of all windows that pixels lie in; windows begin at ``shift``."""
    lo, hi = ((at - shift) // window * window + shift for at in pixels)
    return lo, hi + window - 1

"""Networks as users bring them: a Python file, each function makes one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def seeded(make: type[nn.Module], *arguments: object) -> nn.Module:
    """Make a network whose answer fills the grey range, with statistics that matter."""
    torch.manual_seed(5)
    module = make(*arguments)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.05, 0.2)
    module.eval()
    with torch.inference_mode():
        answer = module(torch.rand(1, 1, 16, 64, 64))
        scale = 0.15 / float(answer.std())
        module.last.weight.mul_(scale)
        module.last.bias.mul_(scale).add_(0.5 - scale * float(answer.mean()))
    return module


def block(first: int, maps: int, kernel=3, norm=True) -> nn.Sequential:
    """Convolve twice, as U-Nets do."""
    layers: list[nn.Module] = []
    for n in (first, maps):
        layers += [nn.Conv3d(n, maps, kernel, padding="same")]
        layers += [nn.BatchNorm3d(maps)] if norm else []
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Plain: pools, transposed convolutions, concatenated skips."""

    factor = (4, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.bottom = block(1, 4), block(4, 8), block(8, 16)
        self.up = nn.ConvTranspose3d(16, 8, 2, 2)
        self.middle = block(16, 8)
        self.finer = nn.ConvTranspose3d(8, 4, (1, 2, 2), (1, 2, 2))
        self.late = block(8, 4)
        self.isotropic = nn.ConvTranspose3d(4, 4, (4, 3, 3), (4, 1, 1), (0, 1, 1))
        self.last = nn.Conv3d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        down = self.down(functional.max_pool3d(first, (1, 2, 2)))
        bottom = self.bottom(functional.max_pool3d(down, 2))
        middle = self.middle(torch.cat([self.up(bottom), down], 1))
        return self.last(self.isotropic(self.late(torch.cat([self.finer(middle), first], 1))))


class Residual(nn.Module):
    """Residual blocks with activations in place, scaled as in EDSR, and a sub-pixel shuffle."""

    factor = (2, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv3d(1, 6, 3, padding=1)
        self.blocks = nn.ModuleList(block(6, 6, norm=False) for _ in range(2))
        self.finer = nn.Conv3d(6, 12, 3, padding=1, padding_mode="replicate")
        self.last = nn.Conv3d(6, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.head(x), inplace=True)
        for layer in self.blocks:
            x = x + layer(x) * 0.5
        x = self.finer(x)
        b, c, z, y, x_ = x.shape
        x = x.reshape(b, c // 2, 2, z, y, x_).permute(0, 1, 3, 2, 4, 5)
        return self.last(x.reshape(b, c // 2, 2 * z, y, x_))


class NNUNet(nn.Module):
    """As nnU-Net builds them: strided convolutions, leaky ReLU, only the finest answer kept."""

    factor = (3, 1, 1)

    def __init__(self, norm=nn.BatchNorm3d) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 4, (1, 3, 3), padding=(0, 1, 1))
        self.norm = norm(4)
        self.down = nn.Conv3d(4, 8, 3, stride=(1, 2, 2), padding=1)
        self.norm_down = norm(8)
        self.deep = nn.Conv3d(8, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose3d(8, 8, 2, 2)
        self.up_finest = nn.ConvTranspose3d(16, 4, (1, 2, 2), (1, 2, 2))
        self.isotropic = nn.ConvTranspose3d(8, 4, (3, 1, 1), (3, 1, 1))
        self.side = nn.Conv3d(16, 1, 1)
        self.last = nn.Conv3d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = functional.leaky_relu(self.norm(self.stem(x)), 0.01)
        down = functional.leaky_relu(self.norm_down(self.down(stem)), 0.01)
        up = torch.cat([self.up(functional.leaky_relu(self.deep(down))), down], 1)
        self.side(up)  # deep supervision: an answer of training
        finest = torch.cat([self.up_finest(up), stem], 1)
        return self.last(self.isotropic(finest))


class Kernels(nn.Module):
    """Even kernels, dilations, groups, strides that no pooling has, reflection."""

    factor = (2, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Conv3d(1, 4, (2, 4, 2), padding="same")
        self.dilated = nn.Conv3d(4, 4, 3, padding=(1, 2, 3), dilation=(1, 2, 3), groups=2)
        self.coarser = nn.Conv3d(4, 6, (1, 5, 4), stride=(1, 3, 2), padding=(0, 2, 1))
        self.finer = nn.ConvTranspose3d(6, 4, (4, 5, 4), (2, 3, 2), (1, 1, 1))
        self.last = nn.Conv3d(4, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.dilated(functional.elu(self.even(x))))
        x = self.finer(functional.silu(self.coarser(x)))
        return self.last(functional.pad(x, (1,) * 6, mode="reflect"))


class Resizing(nn.Module):
    """Interpolations in place of transposed convolutions, and as what the answer is added to."""

    factor = (4, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.deep = nn.Conv3d(4, 4, 3, padding=1)
        self.gate = nn.Conv3d(4, 4, 1)
        self.norm = nn.LayerNorm(4)
        self.last = nn.Conv3d(4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        base = functional.interpolate(x, scale_factor=(4, 1, 1), mode="trilinear")
        x = functional.gelu(self.first(x))
        deep = self.deep(functional.avg_pool3d(x, 3, 2, 1))
        deep = functional.interpolate(deep, scale_factor=2, mode="trilinear")
        x = self.norm((x + deep).movedim(1, -1)).movedim(-1, 1)
        one, other = (x * torch.sigmoid(self.gate(x))).chunk(2, 1)
        x = torch.cat([other, torch.softmax(torch.cat([one, other], 1), 1)[:, :2]], 1)
        x = functional.interpolate(x, scale_factor=(2, 1, 1), mode="nearest")
        x = functional.interpolate(x, size=(x.shape[2] * 2, *x.shape[3:]), mode="nearest-exact")
        return self.last(x) + 0.01 * base


class Slices(nn.Module):
    """A network of 2D convolutions that is given each xz slice."""

    factor = (2, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, z, y, x_ = x.shape
        slices = x.permute(0, 3, 1, 2, 4).reshape(b * y, 1, z, x_)
        answer = self.last(torch.relu(self.first(slices)))  # (y, 2, z, x)
        finer = answer.permute(2, 1, 0, 3).reshape(2 * z, y, x_)
        return finer[None, None]


class Finest(nn.Module):
    """As 3D-SRU-Net: the last level, isotropic and twice as wide, is where the memory is."""

    factor = (4, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bottom = block(1, 4, norm=False), block(4, 8, norm=False)
        self.up = nn.ConvTranspose3d(8, 8, (4, 2, 2), (4, 2, 2))
        self.isotropic = nn.ConvTranspose3d(4, 8, (4, 3, 3), (4, 1, 1), (0, 1, 1))
        self.late = block(16, 8, norm=False)
        self.last = nn.Conv3d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        up = self.up(self.bottom(functional.max_pool3d(first, (1, 2, 2))))
        return self.last(self.late(torch.cat([up, self.isotropic(first)], 1)))


class SwinLike(nn.Module):
    """Windows that are shifted by rolling the volume."""

    factor = (2, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.last = nn.ConvTranspose3d(4, 1, (2, 1, 1), (2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.roll(torch.relu(self.first(x)), (1, 1), (3, 4)))


class Squeezed(nn.Module):
    """Squeeze and excitation: gates that see the whole tile."""

    factor = (2, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.last = nn.ConvTranspose3d(4, 1, (2, 1, 1), (2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x * torch.sigmoid(x.mean((2, 3, 4), keepdim=True)))


class Deciding(nn.Module):
    """Takes another way where the volume is bright: it cannot be traced."""

    factor = (2, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.ConvTranspose3d(1, 1, (2, 1, 1), (2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.flatten()[0] > 2:
            return self.last(x * 2)
        return self.last(x)


class Counting(nn.Module):
    """Traces, but into only one of its ways: which one depends on the extent."""

    factor = (2, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.last = nn.ConvTranspose3d(4, 1, (2, 1, 1), (2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.relu(x) if x.shape[2] > 32 else x)


def unet() -> nn.Module:
    return seeded(UNet)


def residual() -> nn.Module:
    return seeded(Residual)


def nnunet() -> nn.Module:
    return seeded(NNUNet)


def nnunet_instance() -> nn.Module:
    return seeded(NNUNet, nn.InstanceNorm3d)


def kernels() -> nn.Module:
    return seeded(Kernels)


def resizing() -> nn.Module:
    return seeded(Resizing)


def slices() -> nn.Module:
    return seeded(Slices)


def finest() -> nn.Module:
    return seeded(Finest)


def swin() -> nn.Module:
    return seeded(SwinLike)


def squeezed() -> nn.Module:
    return seeded(Squeezed)


def deciding() -> nn.Module:
    return seeded(Deciding)


def counting() -> nn.Module:
    return seeded(Counting)

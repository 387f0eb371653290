"""The network of a package, as networks of users are: from volume to volume, in 0..1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import AXES
from isochunk.errors import ModelError
from isochunk.models.zoo.tensors import BATCH, CHANNEL, Clip, Greys, Layout, Linear, Map


class Packaged(nn.Module):
    """A package's network with its pre- and postprocessing, axes and extents."""

    def __init__(self, network: nn.Module, layout: Layout, greys: Greys) -> None:
        """Surround a network.

        Args:
            network: maps the package's input, preprocessed, to its output before postprocessing.
            layout: how it lies on a volume.
            greys: what values mean to it.
        """
        super().__init__()
        self.network = network
        self.layout = layout
        self.before = joined(
            (Linear(greys.white - greys.black, greys.black), *greys.before),
        )
        span = greys.out_white - greys.out_black
        self.after = joined((*greys.after, Linear(1 / span, -greys.out_black / span)))

    def forward(self, volume: Tensor) -> Tensor:
        """Answer (1, 1, z, y, x) of a volume in 0..1 with (1, 1, fz*z, fy*y, fx*x)."""
        values = mapped(volume, self.before)
        shape = [int(n) for n in volume.shape[2:]]  # what TorchScript traces are no numbers
        rims = self._rims(shape)
        if not any(rims):
            return mapped(self._on_volume(values), self.after)
        answer = self._on_volume(functional.pad(values, rims))
        z, y, x = (n * f for n, f in zip(shape, self.layout.factor, strict=True))
        return mapped(answer[:, :, :z, :y, :x], self.after)

    def _rims(self, shape: Sequence[int]) -> list[int]:
        """Return what the network crops on each side, and what makes up one of its sizes."""
        rims: list[int] = []
        for axis in (2, 1, 0):
            rim, have = self.layout.cropped[axis], shape[axis]
            wanted = self.layout.extents[axis].fitting(have + 2 * rim)
            rims += [rim, wanted - have - rim]
        return rims

    def _on_volume(self, volume: Tensor) -> Tensor:
        """Run the network on a volume, or on its slices."""
        across = self.layout.across
        if across is None:
            return self._run(volume, AXES)
        plane = [name for axis, name in enumerate(AXES) if axis != across]
        slices = volume.movedim(2 + across, 1).flatten(0, 1)
        if self.layout.one_by_one:
            answers = torch.cat([self._run(one, plane) for one in torch.split(slices, 1)])
        else:
            answers = self._run(slices, plane)
        return answers.transpose(0, 1)[None].movedim(2, 2 + across)

    def _run(self, batch: Tensor, space: Sequence[str]) -> Tensor:
        """Run the network on (n, 1, *space), whatever order its own axes have."""
        named = (BATCH, CHANNEL, *space)
        answer = self.network(arranged(batch, named, self.layout.takes))
        if isinstance(answer, (list, tuple)) and len(answer) == 1:
            answer = answer[0]
        if not isinstance(answer, Tensor) or answer.ndim != len(self.layout.gives):
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ModelError(
                f"the package's network answers {got}, not one tensor of "
                f"{', '.join(self.layout.gives)} as its description says"
            )
        return restored(answer, named, self.layout.gives)


def joined(maps: Iterable[Map]) -> tuple[Map, ...]:
    """Make one of linear maps that follow one another."""
    found: list[Map] = []
    for step in maps:
        last = found[-1] if found else None
        if isinstance(step, Linear) and isinstance(last, Linear):
            found[-1] = Linear(last.gain * step.gain, last.offset * step.gain + step.offset)
        else:
            found.append(step)
    return tuple(step for step in found if step != Linear(1.0, 0.0))


def mapped(values: Tensor, maps: Iterable[Map]) -> Tensor:
    """Map each value by itself."""
    for step in maps:
        if isinstance(step, Clip):
            values = torch.clamp(values, step.low, step.high)
        else:
            values = values * step.gain + step.offset
    return values


def arranged(tensor: Tensor, named: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Bring axes into an order; those that are not wanted have one entry, and go."""
    order = [*wanted, *(axis for axis in named if axis not in wanted)]
    tensor = tensor.permute([named.index(axis) for axis in order])
    for _ in order[len(wanted) :]:
        tensor = tensor.squeeze(-1)
    return tensor


def restored(tensor: Tensor, named: Sequence[str], given: Sequence[str]) -> Tensor:
    """Undo :func:`arranged`."""
    order = [*given, *(axis for axis in named if axis not in given)]
    for _ in order[len(given) :]:
        tensor = tensor.unsqueeze(-1)
    return tensor.permute([order.index(axis) for axis in named])

"""Packages of bioimage.io as their authors write them: with their own library, not with ours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bioimageio.spec import save_bioimageio_package
from bioimageio.spec.common import FileDescr
from bioimageio.spec.model import v0_5
from torch import nn

MEAN, STD = 120.0, 40.0
FACTOR = 4


class Restorer(nn.Module):
    """A small network with pooling, padded by zeros, four times finer along z."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 6, 3, padding=1)
        self.deep = nn.Conv3d(6, 6, 3, padding=1)
        self.finer = nn.ConvTranspose3d(6, 6, (FACTOR, 1, 1), (FACTOR, 1, 1))
        self.last = nn.Conv3d(6, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.first(x))
        deep = torch.relu(self.deep(nn.functional.max_pool3d(first, 2)))
        deep = nn.functional.interpolate(deep, scale_factor=2.0, mode="nearest")
        repeated = nn.functional.interpolate(x, scale_factor=[4.0, 1.0, 1.0], mode="nearest")
        return self.last(self.finer(first + deep)) + repeated


class Sharpener(nn.Module):
    """A small network on slices, as fine as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(torch.relu(self.first(x)))


class Valid(nn.Module):
    """A convolution without padding: the answer is smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv3d(1, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.only(x)


CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, maps):
        super().__init__()
        self.first = nn.Conv3d(1, maps, 3, padding=1)
        self.last = nn.ConvTranspose3d(maps, 1, (4, 1, 1), (4, 1, 1))

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))
"""


def seeded(kind: type[nn.Module]) -> nn.Module:
    """Make a network with weights of its own, but always the same."""
    torch.manual_seed(11)
    return kind().eval()


def standard(mean: float = MEAN, std: float = STD) -> list[Any]:
    """Normalise by fixed numbers, as a network for floats wants it."""
    kwargs = v0_5.FixedZeroMeanUnitVarianceKwargs(mean=mean, std=std)
    return [v0_5.FixedZeroMeanUnitVarianceDescr(kwargs=kwargs), floats()]


def floats() -> Any:
    return v0_5.EnsureDtypeDescr(kwargs=v0_5.EnsureDtypeKwargs(dtype="float32"))


def back(gain: float = STD, offset: float = MEAN) -> list[Any]:
    kwargs = v0_5.ScaleLinearKwargs(gain=gain, offset=offset)
    return [v0_5.ScaleLinearDescr(kwargs=kwargs)]


@dataclass(frozen=True)
class Author:
    """What an author says of a network; ``write`` makes the package."""

    network: nn.Module = field(default_factory=lambda: seeded(Restorer))
    axes: str = "bczyx"
    factor: dict[str, int] = field(default_factory=lambda: {"z": FACTOR})
    sizes: dict[str, Any] = field(
        default_factory=lambda: {a: v0_5.ParameterizedSize(min=10, step=2) for a in "zyx"}
    )
    halo: dict[str, int] = field(default_factory=lambda: {"z": 16, "y": 4, "x": 4})
    offset: int = 0
    test: tuple[int, ...] = (1, 1, 12, 16, 20)
    dtype: str = "uint8"
    span: tuple[float | None, float | None] = (None, None)
    out_span: tuple[float | None, float | None] = (0.0, 255.0)
    before: Sequence[Any] = field(default_factory=standard)
    after: Sequence[Any] = field(default_factory=back)
    weights: str = "torchscript"
    wrong: float = 0.0

    def write(self, folder: Path, **changes: Any) -> Path:
        """Write the package and return its ``.zip``."""
        if changes:
            return replace(self, **changes).write(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(2)
        source = rng.integers(20, 230, self.test).astype(self.dtype)
        normal = torch.from_numpy(source.astype(np.float32))
        with torch.no_grad():
            answer = self.network((normal - MEAN) / STD) * STD + MEAN
        np.save(folder / "in.npy", source)
        np.save(folder / "out.npy", answer.numpy() + np.float32(self.wrong))
        (folder / "README.md").write_text("# A network\n\n## Validation\nBy eye.\n")
        described = v0_5.ModelDescr(
            name="a small network",
            description="written by a test",
            authors=[v0_5.Author(name="An Author")],
            cite=[v0_5.CiteEntry(text="a paper", doi=v0_5.Doi("10.1371/journal.pone.0125825"))],
            license="CC-BY-4.0",
            documentation=FileDescr(source=folder / "README.md"),
            inputs=[self._input(folder)],
            outputs=[self._output(folder)],
            weights=self._weights(folder),
        )
        return save_bioimageio_package(described, output_path=folder / "package.zip")

    def _input(self, folder: Path) -> v0_5.InputTensorDescr:
        axes = [
            v0_5.BatchAxis()
            if a == "b"
            else v0_5.ChannelAxis(channel_names=[v0_5.Identifier("em")])
            if a == "c"
            else v0_5.SpaceInputAxis(
                id=v0_5.AxisId(a), size=self.sizes[a], scale=self.factor.get(a, 1)
            )
            for a in self.axes
        ]
        return v0_5.InputTensorDescr(
            id=v0_5.TensorId("raw"),
            axes=axes,
            data=v0_5.IntervalOrRatioDataDescr(type=self.dtype, range=self.span),
            test_tensor=FileDescr(source=folder / "in.npy"),
            preprocessing=list(self.before),
        )

    def _output(self, folder: Path) -> v0_5.OutputTensorDescr:
        return v0_5.OutputTensorDescr(
            id=v0_5.TensorId("fine"),
            axes=[
                v0_5.BatchAxis()
                if a == "b"
                else v0_5.ChannelAxis(channel_names=[v0_5.Identifier("em")])
                if a == "c"
                else self._fine(a)
                for a in self.axes
            ],
            data=v0_5.IntervalOrRatioDataDescr(type="float32", range=self.out_span),
            test_tensor=FileDescr(source=folder / "out.npy"),
            postprocessing=list(self.after),
        )

    def _fine(self, name: str) -> Any:
        size = v0_5.SizeReference(
            tensor_id=v0_5.TensorId("raw"), axis_id=v0_5.AxisId(name), offset=self.offset
        )
        if name in self.halo:
            return v0_5.SpaceOutputAxisWithHalo(
                id=v0_5.AxisId(name), size=size, halo=self.halo[name]
            )
        return v0_5.SpaceOutputAxis(id=v0_5.AxisId(name), size=size)

    def _weights(self, folder: Path) -> v0_5.WeightsDescr:
        version = v0_5.Version(torch.__version__.partition("+")[0])
        if self.weights == "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # what zoos hold is old
                torch.jit.script(self.network).save(str(folder / "weights.pt"))
            return v0_5.WeightsDescr(
                torchscript=v0_5.TorchscriptWeightsDescr(
                    source=folder / "weights.pt", pytorch_version=version
                )
            )
        if self.weights == "onnx":
            (folder / "weights.onnx").write_bytes(b"not looked at")
            return v0_5.WeightsDescr(
                onnx=v0_5.OnnxWeightsDescr(source=folder / "weights.onnx", opset_version=17)
            )
        torch.save(self.network.state_dict(), folder / "weights.pt")
        (folder / "net.py").write_text(CODE)
        return v0_5.WeightsDescr(
            pytorch_state_dict=v0_5.PytorchStateDictWeightsDescr(
                source=folder / "weights.pt",
                pytorch_version=version,
                architecture=v0_5.ArchitectureFromFileDescr(
                    source=folder / "net.py", callable=v0_5.Identifier("Net"), kwargs={"maps": 5}
                ),
            )
        )


def python_author() -> Author:
    """Return an author whose network is made by Python of the package."""
    space: dict[str, Any] = {}
    exec(CODE, space)
    torch.manual_seed(3)
    return Author(network=space["Net"](5).eval(), weights="pytorch_state_dict")

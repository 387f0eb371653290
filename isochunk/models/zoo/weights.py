"""The network of a package, from the weights that torch can run."""

from __future__ import annotations

import hashlib
import sys
import warnings
from importlib import import_module
from io import BytesIO
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

from isochunk.errors import ModelError

if TYPE_CHECKING:
    from bioimageio.spec.model.v0_5 import PytorchStateDictWeightsDescr

    from isochunk.models.zoo.package import Package


def load_network(package: Package, *, trust: bool) -> tuple[nn.Module, list[bytes]]:
    """Load a package's network on the CPU, in eval mode.

    TorchScript comes first: it needs no Python of the package.

    Args:
        package: an open package.
        trust: the user allowed it to run Python.

    Returns:
        The network, and the files that it was made of.

    Raises:
        ModelError: there are no weights for torch, they need Python that is not trusted, or they
            do not load.
    """
    weights = package.description.weights
    if weights.torchscript is not None:
        stored = package.read(weights.torchscript)
        return _torchscript(package.name, stored), [stored]
    if weights.pytorch_state_dict is None:
        there = ", ".join(sorted(weights.model_fields_set)) or "none"
        raise ModelError(
            f"package {package.name!r} has weights for {there} only; isochunk runs torchscript and "
            "pytorch_state_dict; use another package, or have its author add torchscript"
        )
    if not trust:
        raise ModelError(
            f"package {package.name!r} makes its network with Python code, "
            f"{_code(weights.pytorch_state_dict)}, which would run with your rights; read it, then "
            "add --trust"
        )
    return _with_python(package, weights.pytorch_state_dict)


def _torchscript(name: str, stored: bytes) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is old is its author's business
            network: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
                BytesIO(stored), map_location="cpu"
            )
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"the torchscript weights of package {name!r} cannot be loaded by torch "
            f"{torch.__version__}: {said}"
        ) from error
    return network.eval()


def _with_python(
    package: Package, weights: PytorchStateDictWeightsDescr
) -> tuple[nn.Module, list[bytes]]:
    from bioimageio.spec.common import FileDescr

    made, stored = weights.architecture, package.read(weights)
    files = [stored]
    try:
        if isinstance(made, FileDescr):
            files.append(package.read(made))
            code = _imported(files[-1], str(made.source))
        else:
            code = import_module(made.import_from)
        network = getattr(code, str(made.callable))(**made.kwargs)
        state = torch.load(BytesIO(stored), map_location="cpu", weights_only=True)
        network.load_state_dict(state, strict=weights.strict)
    except ModelError:
        raise
    except Exception as error:  # the package's code may raise anything
        said = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"the network of package {package.name!r} cannot be made with {_code(weights)}: "
            f"{type(error).__name__}: {said}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{_code(weights)} of package {package.name!r} made {type(network).__name__}; it must "
            "make an nn.Module"
        )
    return network.eval(), files


def _imported(source: bytes, name: str) -> ModuleType:
    """Run a file of Python; it lies in a package, where nothing is unpacked."""
    code = ModuleType(f"isochunk_package_{hashlib.sha256(source).hexdigest()[:16]}")
    sys.modules[code.__name__] = code  # dataclasses look their module up
    exec(compile(source, name, "exec"), code.__dict__)  # the user trusts it
    return code


def _code(weights: PytorchStateDictWeightsDescr) -> str:
    """Say which code makes a network."""
    made = weights.architecture
    where = getattr(made, "source", None) or getattr(made, "import_from", "")
    return f"{where}:{made.callable}"

"""Networks that users bring: ``torch.export`` programs and trusted Python files.

Both map float32 (b, 1, z, y, x) in the intensity's unit to (b, 1, fz*z, fy*y, fx*x) and carry
``factor``, and optionally ``halo``, ``alignment`` and ``plane``: as attributes of the module, or
in ``model.pt2.json`` beside ``model.pt2``. What is not declared is measured; what is declared is
verified.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from isochunk.core.geometry import Triple, ceil_div, triple
from isochunk.core.job import Precision
from isochunk.core.spec import ModelSpec, Plane
from isochunk.errors import ModelError
from isochunk.models.probe import (
    ALIGNMENTS,
    Probe,
    Reach,
    UnboundedError,
    measured_cost,
    untileable_layers,
)

DECLARED = ("factor", "halo", "alignment", "plane")

INEXACT_HALO: Triple = (8, 32, 32)
"""Context given to a network that no halo makes exact, where it declares none."""


@dataclass(frozen=True, slots=True)
class UserModel:
    """A network of a user's, examined."""

    spec: ModelSpec
    """What was declared and measured."""
    module: nn.Module
    """The network on the CPU, in eval mode."""
    program: ExportedProgram | None = None
    """The exported program the module comes from."""
    shape: Triple | None = None
    """The only input shape it takes; None for any multiple of its alignment."""
    reason: str = ""
    """Why it cannot be tiled exactly; empty where it can."""

    def on(self, device: torch.device, precision: Precision) -> nn.Module:
        """Return the module ready for a device.

        Raises:
            ModelError: an exported program is asked for another precision.
        """
        if self.program is None:
            return self.module
        if precision != "fp32":
            raise ModelError(
                f"{self.spec.name} was exported in one precision; use --precision fp32, or export "
                f"it in {precision} with float32 at its ends"
            )
        if device.type == "cpu":
            return self.module
        return move_to_device_pass(copy.deepcopy(self.program), device).module()


def open_user_model(name: str, *, trust: bool) -> UserModel:
    """Load and examine ``file.pt2`` or ``file.py:make``.

    Raises:
        ModelError: it cannot be found, is not trusted, does not load, declares something that
            cannot be read, or declares less halo than it has.
    """
    if name.endswith(".pt2"):
        return _open_program(Path(name))
    if not trust:
        raise ModelError(
            f"model {name!r} is Python code and would run with your rights; read it, then add "
            "--trust (or trust=True)"
        )
    return _open_python(name)


def _open_python(name: str) -> UserModel:
    path_text, _, function = name.partition(".py:")
    path = Path(path_text if path_text.endswith(".py") else f"{path_text}.py")
    if not function or not path.is_file():
        raise ModelError(f"model {name!r} is no file and function; write my_model.py:make")
    loader = importlib.util.spec_from_file_location(f"isochunk_user_{path.stem}", path)
    assert loader is not None
    assert loader.loader is not None
    code = importlib.util.module_from_spec(loader)
    try:
        loader.loader.exec_module(code)
        module = getattr(code, function)()
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"model {name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"model {name!r} made {type(module).__name__}; it must make an nn.Module")
    declared = {key: getattr(module, key) for key in DECLARED if hasattr(module, key)}
    digest = hashlib.sha256(path.read_bytes())
    digest.update(function.encode())
    for key, value in module.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return _examine(name, module.eval(), declared, digest.hexdigest())


def _open_program(path: Path) -> UserModel:
    declaration_path = path.with_name(f"{path.name}.json")
    if not path.is_file():
        raise ModelError(f"no model file {path}")
    try:
        declaration = declaration_path.read_bytes()
        declared = json.loads(declaration)
    except FileNotFoundError:
        raise ModelError(
            f"{declaration_path} is missing; it says what {path.name} does, "
            'as {"factor": [4, 1, 1]}'
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{declaration_path} cannot be read: {error}") from error
    if not isinstance(declared, dict):
        raise ModelError(f'{declaration_path} must hold an object, as {{"factor": [4, 1, 1]}}')
    try:
        program = torch.export.load(path)
        shape = _only_shape(program, path)
        module = program.module()
    except ModelError:
        raise
    except Exception as error:  # torch raises many kinds here
        raise ModelError(
            f"{path} is no torch.export program of this torch: {type(error).__name__}: {error}"
        ) from error
    digest = hashlib.sha256(path.read_bytes() + declaration).hexdigest()
    found = _examine(str(path), module, declared, digest, shape)
    return UserModel(found.spec, module, program, shape, found.reason)


def _only_shape(program: ExportedProgram, path: Path) -> Triple | None:
    """Return the input shape of a program with static shapes."""
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes}
    shape: tuple[Any, ...] = ()
    if len(names) == 1:
        shape = tuple(nodes[str(names[0])].meta["val"].shape)
    static = [isinstance(n, int) for n in shape]
    if len(static) != 5 or (static[0] and shape[0] != 1) or shape[1] != 1:  # noqa: PLR2004
        raise ModelError(
            f"{path} takes {shape}; export it with one example input of (1, 1, z, y, x)"
        )
    if any(static[2:]) != all(static[2:]):
        raise ModelError(
            f"{path} takes {shape}; export it with z, y and x all dynamic or all fixed"
        )
    return triple(shape[2:]) if static[2] else None


def _examine(
    name: str,
    module: nn.Module,
    declared: Mapping[str, Any],
    sha256: str,
    shape: Triple | None = None,
) -> UserModel:
    """Check what is declared and measure what is not."""
    factor = _declared(name, declared, "factor")
    if factor is None:
        raise ModelError(f"model {name!r} declares no factor; set factor = (fz, fy, fx)")
    halo, alignment = _declared(name, declared, "halo"), _declared(name, declared, "alignment")
    plane = declared.get("plane", "3d")
    if plane not in get_args(Plane):
        raise ModelError(
            f"model {name!r} has plane {plane!r}; choose one of {', '.join(get_args(Plane))}"
        )
    probe = Probe(module, factor, shape)
    layers = untileable_layers(module)
    reason = f"it normalises each tile by itself: {', '.join(layers)}" if layers else ""
    if not reason:
        try:
            with torch.inference_mode():
                reach = probe.reach(alignment)
        except UnboundedError as error:
            reason = str(error)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, ModelError):
                raise ModelError(f"model {name!r}: {error}") from error
            raise ModelError(
                f"model {name!r} failed on a float32 (1, 1, z, y, x) input: {error}"
            ) from error
    if reason:
        reach = Reach(halo or INEXACT_HALO, alignment or (ALIGNMENTS[-1],) * 3)
    elif halo is not None and any(a < b for a, b in zip(halo, reach.halo, strict=True)):
        raise ModelError(
            f"model {name!r} declares a halo of {halo} source voxels (z, y, x) but looks as far "
            f"as {reach.halo}; correct it, or leave it out to have it measured"
        )
    counted = measured_cost(probe, reach)
    spec = ModelSpec(
        name=name,
        arch="module",
        factor=(Fraction(factor[0]), Fraction(factor[1]), Fraction(factor[2])),
        halo=_whole_cells(halo or reach.halo, reach.alignment),
        alignment=reach.alignment,
        plane=cast(Plane, plane),
        exact=not reason,
        parameters=sum(p.numel() for p in module.parameters()),
        macs_per_voxel=counted.macs,
        bytes_per_voxel=counted.bytes,
        sha256=sha256,
    )
    return UserModel(spec, module, shape=shape, reason=reason)


def _declared(name: str, declared: Mapping[str, Any], key: str) -> Triple | None:
    if key not in declared:
        return None
    least = 0 if key == "halo" else 1
    try:
        value = triple(declared[key])
        if any(a != b or a < least for a, b in zip(value, declared[key], strict=True)):
            raise ValueError
    except (TypeError, ValueError):
        raise ModelError(
            f"model {name!r} declares {key} {declared[key]!r}; it must be three whole numbers "
            f"(z, y, x) of at least {least}"
        ) from None
    return value


def _whole_cells(halo: Triple, alignment: Triple) -> Triple:
    """Round a halo up, so that what is read starts on the alignment."""
    return triple(ceil_div(h, g) * g for h, g in zip(halo, alignment, strict=True))

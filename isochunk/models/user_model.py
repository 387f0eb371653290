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
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from isochunk.core.geometry import Triple, ceil_div, triple
from isochunk.core.job import Precision
from isochunk.core.limits import COST_TILE, WORKSPACE
from isochunk.core.spec import ModelSpec, Plane
from isochunk.errors import ModelError
from isochunk.models.counting import Cost
from isochunk.models.kernels import lay_out_channels_last
from isochunk.models.probe import (
    ALIGNMENTS,
    Probe,
    Reach,
    UnboundedError,
    measured_cost,
    untileable_layers,
)
from isochunk.models.spans import (
    UninterpretableError,
)
from isochunk.models.tile_walk import tile_costs
from isochunk.models.tiling import Engine, SameSizeEngine
from isochunk.models.traced import TracedEngine, prove, trace

DECLARED = ("factor", "halo", "alignment", "plane")

TRACED_CELLS: Triple = (4, 6, 5)
"""Extents of the example that is traced, in cells: each different, so that axes are not mistaken
for one another."""

INEXACT_HALO: Triple = (8, 32, 32)
"""Context given to a network that no halo makes exact, where it declares none."""


@dataclass(frozen=True, slots=True)
class UserModel:
    """A network of a user's, examined."""

    spec: ModelSpec
    """What was declared and measured."""
    module: nn.Module
    """The network on the CPU, in eval mode."""
    traced: TracedEngine | None
    """The network by valid convolutions; None where it is padded and cropped."""
    program: ExportedProgram | None = None
    """The exported program the module comes from."""
    shape: Triple | None = None
    """The only input shape it takes; None for any multiple of its alignment."""
    inexact_because: str = ""
    """Why it cannot be tiled exactly; empty where it can."""
    one_precision: bool = False
    """Whether constants among its operations tie it to the precision it was made in."""

    def engine(self, spec: ModelSpec, device: torch.device, precision: Precision) -> Engine:
        """Return what runs it on tiles.

        Args:
            spec: its spec with factor fixed.
            device: where.
            precision: number format of weights and layers.

        Raises:
            ModelError: an exported program is asked for another precision.
        """
        if self.one_precision and precision not in ("fp32", "tf32"):
            raise ModelError(
                f"{self.spec.name} was exported in one precision; use --precision fp32, or export "
                f"it in {precision} with float32 at its ends"
            )
        if self.traced is not None:
            return self.traced
        module = self.module
        if self.program is None:
            lay_out_channels_last(module)  # faster on a CPU, and what some cuDNN get right alone
        elif device.type != "cpu":
            module = move_to_device_pass(copy.deepcopy(self.program), device).module()
        return SameSizeEngine(module, spec, self.shape)


def open_user_model(name: str, *, trust: bool, known: ModelSpec | None = None) -> UserModel:
    """Load and examine ``file.pt2`` or ``file.py:make``.

    Args:
        name: which.
        trust: the user allowed it to run code.
        known: what was found of a model; where this is the same, it is traced and no more.

    Raises:
        ModelError: it cannot be found, is not trusted, does not load, declares something that
            cannot be read, or declares less halo than it has.
    """
    if name.endswith(".pt2"):
        return _open_program(Path(name), known)
    if not trust:
        raise ModelError(
            f"model {name!r} is Python code and would run with your rights; read it, then add "
            "--trust"
        )
    return _open_python(name, known)


def _open_python(name: str, known: ModelSpec | None) -> UserModel:
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
    return examine_module(name, module.eval(), declared, digest.hexdigest(), known)


def _open_program(path: Path, known: ModelSpec | None) -> UserModel:
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
    found = examine_module(str(path), module, declared, digest, known, shape)
    return replace(found, program=program, shape=shape, one_precision=True)


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


def examine_module(
    name: str,
    module: nn.Module,
    declared: Mapping[str, Any],
    sha256: str,
    known: ModelSpec | None,
    shape: Triple | None = None,
) -> UserModel:
    """Check what is declared of a network and measure what is not.

    Args:
        name: what the user called it.
        module: maps (1, 1, z, y, x) to (1, 1, fz*z, fy*y, fx*x), on the CPU and in eval mode.
        declared: ``factor``, and where they are known ``halo``, ``alignment`` and ``plane``.
        sha256: over all that defines its answers.
        known: what was found of a model; where this is the same, it is traced and no more.
        shape: the only input shape it takes; None for any.

    Raises:
        ModelError: it declares something that cannot be read, or less halo than it has, or fails.
    """
    factor = _declared(name, declared, "factor")
    if factor is None:
        raise ModelError(f"model {name!r} declares no factor; set factor = (fz, fy, fx)")
    halo, alignment = _declared(name, declared, "halo"), _declared(name, declared, "alignment")
    plane = declared.get("plane", "3d")
    if plane not in get_args(Plane):
        raise ModelError(
            f"model {name!r} has plane {plane!r}; choose one of {', '.join(get_args(Plane))}"
        )
    if known is not None and known.sha256 == sha256 and known.exact:
        padded = known.padded_because
        again = None if padded else _trace(module, factor, alignment, shape)
        return UserModel(known, module, again, shape=shape)
    probe = Probe(module, factor, shape)
    traced, padded, inexact = None, "", ""
    layers = untileable_layers(module)
    if layers:
        inexact = f"it normalises each tile by itself: {', '.join(layers)}"
    else:
        try:
            traced = _trace(module, factor, alignment, shape)
            prove(traced, module, shape)
        except UninterpretableError as error:
            traced, padded = None, str(error)
            reach, inexact = _measured(name, probe, alignment)
    if traced is not None:
        reach = traced.reach()
        if halo is not None and _short(halo, reach):  # a graph tells what may be needed at most
            reach, inexact = _measured(name, probe, reach.alignment)
    if inexact:
        reach = Reach(halo or INEXACT_HALO, alignment or (ALIGNMENTS[-1],) * 3)
    elif halo is not None and _short(halo, reach):
        raise ModelError(
            f"model {name!r} declares a halo of {halo} source voxels (z, y, x) but looks as far "
            f"as {reach.halo}; correct it, or leave it out to have it measured"
        )
    spec = ModelSpec(
        name=name,
        arch="module",
        factor=(Fraction(factor[0]), Fraction(factor[1]), Fraction(factor[2])),
        halo=_whole_cells(halo or reach.halo, reach.alignment),
        alignment=reach.alignment,
        plane=cast(Plane, plane),
        exact=not inexact,
        parameters=sum(p.numel() for p in module.parameters()),
        sha256=sha256,
        padded_because=padded,
    )
    counted = measured_cost(probe, reach) if traced is None else _walked_cost(traced, spec)
    spec = replace(spec, macs_per_voxel=counted.macs, bytes_per_voxel=counted.bytes)
    return UserModel(spec, module, traced, shape=shape, inexact_because=inexact)


def _walked_cost(traced: TracedEngine, spec: ModelSpec) -> Cost:
    """Return what a target voxel costs: by itself, and in a usual tile."""
    costs = tile_costs(traced, spec, torch.float32)
    if costs is None:
        return Cost(0.0, 0.0)
    usual, large = (
        triple(
            ceil_div(n, g) * g * f * many
            for n, g, f in zip(COST_TILE, spec.alignment, traced.factor, strict=True)
        )
        for many in (1, 1000)
    )
    return Cost(
        costs.of(large).macs / math.prod(large),
        WORKSPACE * costs.of(usual).bytes / math.prod(usual),
    )


def _short(halo: Triple, reach: Reach) -> bool:
    """Tell whether a declared halo is less than what was found."""
    return any(a < b for a, b in zip(halo, reach.halo, strict=True))


def _trace(
    module: nn.Module, factor: Triple, alignment: Triple | None, shape: Triple | None
) -> TracedEngine:
    """Trace a network on an example of its only shape, or of some cells.

    Raises:
        UninterpretableError: it cannot be traced.
    """
    cells = (math.lcm(ALIGNMENTS[-1], g) for g in alignment or (1, 1, 1))
    return trace(
        module, factor, shape or triple(a * b for a, b in zip(cells, TRACED_CELLS, strict=True))
    )


def _measured(name: str, probe: Probe, alignment: Triple | None) -> tuple[Reach, str]:
    """Measure how far a network looks; return that and why it cannot be tiled exactly."""
    try:
        with torch.inference_mode():
            return probe.reach(alignment), ""
    except UnboundedError as error:
        return Reach((0, 0, 0), (1, 1, 1)), str(error)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, ModelError):
            raise ModelError(f"model {name!r}: {error}") from error
        raise ModelError(
            f"model {name!r} failed on a float32 (1, 1, z, y, x) input: {error}"
        ) from error


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

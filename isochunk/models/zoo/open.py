"""A package of bioimage.io as a network of a user's: loaded, tried on its own test, examined."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray

from isochunk.core.geometry import Triple, ceil_div, triple
from isochunk.core.spec import ModelSpec
from isochunk.errors import ModelError
from isochunk.models.user_model import UserModel, examine_module
from isochunk.models.zoo.package import Package, opened
from isochunk.models.zoo.packaged import Packaged, mapped
from isochunk.models.zoo.tensors import Greys, greys_of, layout_of
from isochunk.models.zoo.weights import load_network

TOLERANCE = (1e-3, 1e-3, 100)
"""Relative and absolute tolerance of a package's test, and how many voxels of a million may be
beyond, where the package names none; the defaults of bioimage.io."""


def open_package(name: str, *, trust: bool, known: ModelSpec | None = None) -> UserModel:
    """Load and examine a package.

    Args:
        name: a folder with a description, or a ``.zip``.
        trust: the user allowed it to run Python.
        known: what was found of a model; where this is the same, its test is not run again.

    Raises:
        ModelError: it cannot be opened, trusted or loaded, cannot be run on tiles, or does not
            answer its own test as it says.
    """
    with opened(name) as package:
        layout = layout_of(name, package.description)
        test = _array(package, 0)
        seen = None if test is None else (float(test.min()), float(test.max()))
        greys = greys_of(name, package.description, seen)
        network, files = load_network(package, trust=trust)
        module = Packaged(network, layout, greys).eval()
        digest = hashlib.sha256(package.text.encode())
        for file in files:
            digest.update(hashlib.sha256(file).digest())
        sha256 = digest.hexdigest()
        if known is None or known.sha256 != sha256:
            _require_reproduced(package, module, greys, test)
        described = package.description
    declared = {"factor": layout.factor, "alignment": layout.alignment}
    declared = {key: value for key, value in declared.items() if value is not None}
    found = examine_module(name, module, declared, sha256, known, layout.shape)
    spec = replace(
        found.spec,
        halo=_halo(found, layout.halo),
        plane=layout.plane,
        licence=described.license if isinstance(described.license, str) else "",
    )
    scripted = isinstance(network, torch.jit.ScriptModule)
    return replace(found, spec=spec, one_precision=scripted)


def _halo(found: UserModel, declared: Triple | None) -> Triple:
    """Return the halo that a network is run with.

    What was found is enough where tiles join exactly. What the package declares counts where
    nothing can be found, and where it is more than what was measured with NaN.
    """
    spec = found.spec
    if declared is None or found.traced is not None:
        return spec.halo
    wanted = declared if not spec.exact else map(max, spec.halo, declared)
    return triple(ceil_div(h, g) * g for h, g in zip(wanted, spec.alignment, strict=True))


def _array(package: Package, output: int) -> NDArray[np.generic] | None:
    """Return the test input, or with 1 the test output; None where there is none.

    Raises:
        ModelError: it is missing, damaged or no array.
    """
    model = package.description
    tensor = (model.inputs[0], model.outputs[0])[output]
    if tensor.test_tensor is None:
        return None
    stored = package.read(tensor.test_tensor)
    try:
        array: NDArray[np.generic] = np.load(BytesIO(stored), allow_pickle=False)
    except ValueError as error:
        raise ModelError(
            f"{tensor.test_tensor.source} of package {package.name!r} is no array ({error}); fetch "
            "the package again"
        ) from error
    if array.ndim != len(tensor.axes) or not array.size:
        raise ModelError(
            f"{tensor.test_tensor.source} of package {package.name!r} has shape {array.shape}, "
            f"which are not axes {', '.join(str(axis.id) for axis in tensor.axes)}"
        )
    return array


@torch.inference_mode()
def _require_reproduced(
    package: Package, module: Packaged, greys: Greys, test: NDArray[np.generic] | None
) -> None:
    """Refuse a package whose network does not answer its test input with its test output."""
    wanted = _array(package, 1)
    if test is None or wanted is None:
        return
    source = torch.from_numpy(test.astype(np.float32))
    answer = module.network(mapped(source, greys.before))
    if isinstance(answer, (list, tuple)):
        answer = answer[0]
    got = mapped(answer, greys.after).numpy()
    if greys.whole:
        got = np.trunc(got)
    rims = _rims(package)
    got, expected = _inner(got, wanted.astype(np.float32), rims)
    relative, absolute, per_million = _tolerance(package, whole=greys.whole)
    if got.shape == expected.shape:
        beyond = np.abs(got - expected) > absolute + relative * np.abs(expected)
        if beyond.mean() * 1e6 <= per_million:
            return
        said = f"differs by up to {np.abs(got - expected).max():g}"
    else:
        said = f"has shape {got.shape}, not {expected.shape}"
    raise ModelError(
        f"package {package.name!r} does not answer its own test: the output {said}; it was made "
        "with another network or another torch, so ask its author"
    )


def _rims(package: Package) -> list[int]:
    """Return what a package wants cropped of its answer on both sides, axis by axis."""
    return [getattr(axis, "halo", 0) for axis in package.description.outputs[0].axes]


def _inner(
    got: NDArray[np.float32], expected: NDArray[np.float32], rims: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what is to be equal of an answer and a test output, which may be cropped already.

    Rims are left out: whether a test was padded first is not said.
    """
    inner = tuple(slice(r, -r or None) for r in rims)
    cropped = got[inner] if all(n > 2 * r for n, r in zip(got.shape, rims, strict=True)) else got
    if expected.shape == got.shape:
        return cropped, expected[inner] if cropped is not got else expected
    return cropped, expected


def _tolerance(package: Package, *, whole: bool) -> tuple[float, float, float]:
    """Return relative and absolute tolerance, and voxels of a million that may be beyond."""
    output = package.description.outputs[0].id
    for told in package.description.config.bioimageio.reproducibility_tolerance:
        if not told.output_ids or output in told.output_ids:
            found = (
                told.relative_tolerance,
                told.absolute_tolerance,
                told.mismatched_elements_per_million,
            )
            break
    else:
        found = TOLERANCE
    return (found[0], max(found[1], 1.0), found[2]) if whole else found

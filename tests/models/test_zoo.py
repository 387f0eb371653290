"""Packages of the BioImage Model Zoo as models: what is honoured, and what is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from bioimageio.spec.model import v0_5
from ruyaml import YAML
from zoo_packages import MEAN, STD, Author, Sharpener, Valid, floats, python_author, seeded

from isochunk.errors import ModelError
from isochunk.models.load import Runtime, describe, load
from isochunk.models.zoo.open import open_package


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing is contacted, whatever a description points to."""

    def refused(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def changed(package: Path, change: Any, files: dict[str, bytes] | None = None) -> Path:
    """Write a package again after a change to its description, and with other files."""
    out, yaml = package.with_name("changed.zip"), YAML(typ="safe")
    with ZipFile(package) as old, ZipFile(out, "w") as new:
        for name in old.namelist():
            stored = old.read(name)
            if name == "rdf.yaml":
                content = yaml.load(stored.decode())
                change(content)
                stored = json.dumps(content).encode()  # which is YAML
            new.writestr(name, stored)
        for name, stored in (files or {}).items():
            new.writestr(name, stored)
    return out


def refused(package: Path, said: str, *, trust: bool = False) -> None:
    with pytest.raises(ModelError, match=said):
        open_package(str(package), trust=trust)


def test_what_a_package_says_is_what_is_planned_with(tmp_path):
    opened = open_package(str(Author().write(tmp_path)), trust=False)
    spec = opened.spec
    assert [int(f) for f in spec.factor] == [4, 1, 1]
    assert spec.halo == (4, 4, 4)  # a convolution, then one on pooled voxels: whole cells
    assert spec.alignment == (2, 2, 2)
    assert spec.exact
    assert spec.padded_because == ""
    assert spec.licence == "CC-BY-4.0"


def test_a_zip_and_its_folder_are_one_model(tmp_path):
    package = Author().write(tmp_path)
    with ZipFile(package) as archive:
        archive.extractall(tmp_path / "folder")
    one, other = describe(str(package)), describe(str(tmp_path / "folder"))
    assert one.sha256 == other.sha256
    other_weights = Author(network=seeded(Valid)).write(
        tmp_path / "other",
        factor={},
        halo={},
        offset=-2,
        sizes=dict.fromkeys("zyx", v0_5.ParameterizedSize(min=8, step=1)),
    )
    assert describe(str(other_weights)).sha256 != one.sha256


def test_fixed_normalisation_is_honoured_in_grey_levels(tmp_path):
    author = Author()
    opened = open_package(str(author.write(tmp_path)), trust=False)
    grey = np.random.default_rng(0).integers(0, 256, (1, 1, 12, 16, 16)).astype(np.float32)
    with torch.inference_mode():
        wanted = author.network((torch.from_numpy(grey) - MEAN) / STD) * STD + MEAN
        got = opened.module(torch.from_numpy(grey / 255)) * 255
    torch.testing.assert_close(got, wanted, atol=1e-2, rtol=0)
    assert float(wanted.std()) > 10


def clipped(low: float, high: float) -> Any:
    return v0_5.ClipDescr(kwargs=v0_5.ClipKwargs(min=low, max=high))


def test_a_range_of_floats_says_what_is_black_and_white(tmp_path):
    """Values of -1 to 1 without processing, so what isochunk calls 0.5 is 0 there."""
    author = Author(
        dtype="float32", span=(-1, 1), out_span=(-1, 1), before=[floats()], after=[clipped(-1, 1)]
    )
    package = author.write(tmp_path)
    # The test of the helper normalises, this package does not.
    with ZipFile(package) as archive:
        source = np.load(archive.open("in.npy")) / 255
    np.save(tmp_path / "in.npy", source.astype(np.float32))
    with torch.no_grad():
        answer = author.network(torch.from_numpy(source.astype(np.float32))).clamp(-1, 1)
    np.save(tmp_path / "out.npy", answer.numpy())

    def unhashed(content: dict[str, Any]) -> None:
        content["inputs"][0]["test_tensor"] = {"source": "new_in.npy"}
        content["outputs"][0]["test_tensor"] = {"source": "new_out.npy"}

    files = {f"new_{n}.npy": (tmp_path / f"{n}.npy").read_bytes() for n in ("in", "out")}
    opened = open_package(str(changed(package, unhashed, files)), trust=False)
    grey = torch.rand(1, 1, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = (author.network(grey * 2 - 1).clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(opened.module(grey), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("axes", "across", "plane"), [("bcyx", 0, "xy"), ("bzxc", 1, "xz")])
def test_networks_for_slices_run_on_the_slices_that_they_name(tmp_path, axes, across, plane):
    class Last(Sharpener):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.permute(0, 3, 1, 2)
            x = x + self.last(torch.relu(self.first(x)))
            return x.permute(0, 2, 3, 1)

    network = seeded(Sharpener if axes[1] == "c" else Last)
    test = (2, 1, 12, 16) if axes[1] == "c" else (2, 12, 16, 1)
    author = Author(network=network, axes=axes, factor={}, halo={}, test=test)
    opened = open_package(str(author.write(tmp_path)), trust=False)
    assert opened.spec.plane == plane
    assert opened.spec.halo == tuple(0 if axis == across else 2 for axis in range(3))
    volume = torch.rand(1, 1, 10, 12, 14, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        got = opened.module(volume)
        slices = (volume[0, 0] * 255 - MEAN).movedim(across, 0) / STD
        space = slices[:, None] if axes[1] == "c" else slices[..., None]
        wanted = network(space) * STD + MEAN
        wanted = (wanted[:, 0] if axes[1] == "c" else wanted[..., 0]).movedim(0, across) / 255
    torch.testing.assert_close(got[0, 0], wanted, atol=1e-5, rtol=0)


def test_a_network_that_crops_its_rim_is_given_one(tmp_path):
    sizes = dict.fromkeys("zyx", v0_5.ParameterizedSize(min=9, step=5))
    author = Author(
        network=seeded(Valid), factor={}, halo={}, offset=-2, sizes=sizes, test=(1, 1, 14, 19, 24)
    )
    opened = open_package(str(author.write(tmp_path)), trust=False)
    assert opened.spec.halo == (1, 1, 1)
    grey = torch.rand(1, 1, 11, 12, 13, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = (author.network((grey * 255 - MEAN) / STD) * STD + MEAN) / 255
        got = opened.module(grey)[:, :, 1:-1, 1:-1, 1:-1]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_a_network_of_one_shape_is_traced_all_the_same(tmp_path):
    sizes = dict.fromkeys("zyx", 24)
    package = Author().write(tmp_path, sizes=sizes, test=(1, 1, 24, 24, 24), halo={})
    opened = open_package(str(package), trust=False)
    assert opened.shape == (24, 24, 24)
    assert opened.spec.alignment == (2, 2, 2)
    assert opened.spec.exact


def test_python_of_a_package_needs_trust(tmp_path):
    author = python_author()
    package = author.write(tmp_path)
    refused(package, r"Python code, net\.py:Net.*--trust")
    opened = open_package(str(package), trust=True)
    grey = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = (author.network((grey * 255 - MEAN) / STD) * STD + MEAN) / 255
        torch.testing.assert_close(opened.module(grey), wanted, atol=1e-5, rtol=0)


def test_other_weights_are_refused(tmp_path):
    refused(Author().write(tmp_path, weights="onnx"), "onnx only; isochunk runs torchscript")


def test_damaged_weights_are_refused(tmp_path):
    package = Author().write(tmp_path / "whole")
    with ZipFile(package) as archive:
        archive.extractall(tmp_path / "folder")
    weights = tmp_path / "folder" / "weights.pt"
    stored = bytearray(weights.read_bytes())
    stored[len(stored) // 2] ^= 1
    weights.write_bytes(stored)
    refused(tmp_path / "folder", "sha256 .* but its description records")
    weights.unlink()
    refused(tmp_path / "folder", r"lacks weights\.pt")


def test_a_package_that_fails_its_own_test_is_refused(tmp_path):
    refused(Author().write(tmp_path, wrong=3.0), "does not answer its own test.*differs by up to 3")


def dropped(part: str, *path: Any, value: Any = None) -> Any:
    """Return a change of a description: a value below its first input or output."""

    def change(content: dict[str, Any]) -> None:
        below = content[part][0]
        for key in path[:-1]:
            below = below[key]
        below[path[-1]] = value

    return change


TIME = {"type": "time", "size": 1}
PER_TILE = [
    {"id": "zero_mean_unit_variance"},
    {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
]
ROUNDS = [{"id": "scale_linear", "kwargs": {"gain": 0.5}}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["inputs"].append({**c["inputs"][0], "id": "more"}), "has 2 inputs"),
        (lambda c: c["outputs"].append({**c["outputs"][0], "id": "more"}), "has 2 outputs"),
        (lambda c: c.update(type="dataset"), "describes a dataset"),
        (lambda c: c["inputs"][0]["axes"].append(TIME), "axis of time, 'time'"),
        (dropped("inputs", "axes", 1, "channel_names", value=["a", "b"]), "2 channels"),
        (dropped("inputs", "output_of", value="affable-shark"), "continues another model"),
        (dropped("inputs", "preprocessing", value=PER_TILE), "zero_mean_unit_variance.*tile at"),
        (dropped("inputs", "preprocessing", value=ROUNDS), "gives its network uint8"),
        (dropped("outputs", "postprocessing", value=[{"id": "sigmoid"}]), "makes no grey levels"),
        (
            lambda c: c["inputs"][0].update(data={"type": "float32"}, test_tensor=None),
            "brings no test input; add data.range",
        ),
        (lambda c: c.pop("weights"), "description of package .* is invalid: weights"),
        (
            lambda c: c["weights"]["torchscript"].update(source="https://example.com/weights.pt"),
            "outside itself; put that file",
        ),
        (lambda c: c["weights"]["torchscript"].update(source="../weights.pt"), "outside itself"),
    ],
)
def test_what_cannot_be_tiled_exactly_is_refused(tmp_path, change, said):
    refused(changed(Author().write(tmp_path), change), said)


def test_a_factor_that_is_not_whole_is_refused(tmp_path):
    package = Author().write(tmp_path, halo={})
    refused(changed(package, dropped("inputs", "axes", 2, "scale", value=1.5)), "a whole factor")


def test_an_output_of_unknown_grey_levels_is_refused(tmp_path):
    package = Author().write(tmp_path, after=[], out_span=(None, None))
    refused(package, "says neither what its output means")


def test_a_zip_is_not_unpacked_and_may_not_lead_outside(tmp_path):
    package = changed(Author().write(tmp_path / "in"), lambda _: None, {"../evil.py": b"raise"})
    before = set(tmp_path.rglob("*"))
    refused(package, r"'\.\./evil\.py', which leads outside")
    assert set(tmp_path.rglob("*")) == before
    (tmp_path / "no.zip").write_bytes(b"none")
    refused(tmp_path / "no.zip", "no zip file")
    refused(tmp_path / "nothing.zip", "no package")
    with ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    refused(tmp_path / "empty.zip", r"holds no rdf\.yaml or bioimageio\.yaml")


def test_a_link_in_a_folder_may_not_lead_outside(tmp_path):
    package = Author().write(tmp_path / "in")
    with ZipFile(package) as archive:
        archive.extractall(tmp_path / "folder")
    weights = tmp_path / "folder" / "weights.pt"
    weights.unlink()
    weights.symlink_to(tmp_path / "in" / "weights.pt")
    refused(tmp_path / "folder", "a link that leads outside")


def test_without_the_extra_an_error_names_it(tmp_path):
    package = Author().write(tmp_path)
    code = (
        "import sys; sys.modules['bioimageio.spec'] = None\n"
        "from isochunk.models.load import describe\n"
        f"describe({str(package)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'isochunk[zoo]'" in done.stderr


def test_torchscript_computes_in_the_precision_it_was_made_in(tmp_path):
    package = str(Author().write(tmp_path))
    spec = describe(package)
    runtime = Runtime(factor=spec.resolved_factor)
    load(package, runtime)
    with pytest.raises(ModelError, match="exported in one precision"):
        load(package, replace(runtime, precision="bf16"))

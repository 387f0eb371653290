"""Networks as packages: what the zoo's own library says of them, and what they answer."""

from __future__ import annotations

import socket
from fractions import Fraction
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from bioimageio.spec import load_description
from bioimageio.spec.model import v0_5
from bioimageio.spec.utils import load_array
from jobs import command, read_all

import isochunk
from isochunk.core.tissue import truth
from isochunk.errors import ModelError, UsageError
from isochunk.models.packing.write import Packing, write_package

BLOCKS = {"fsrcnn-z4": "20,32,32", "anyz-z4": "32,36,36"}


@pytest.fixture(scope="module", params=BLOCKS)
def exported(request, tmp_path_factory):
    """Return a network's name, its package and what the command said."""
    out = tmp_path_factory.mktemp("packages") / f"{request.param}.zip"
    named = ("--bioimageio", str(out), "--factor", "4", "--block", BLOCKS[request.param])
    return request.param, out, command("export", request.param, *named)


def test_the_zoos_own_validation_passes_without_the_network(exported, monkeypatch):
    def refused(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    name, out, told = exported
    described = load_description(out, perform_io_checks=True)
    assert isinstance(described, v0_5.ModelDescr), described.get_reason()
    assert described.validation_summary.status in ("passed", "valid-format")
    assert described.license == "CC-BY-4.0"
    assert described.cite
    assert name in described.name
    assert told["factor"] == 4
    assert told["warnings"] == [w for w in told["warnings"] if "sample_tensor" in w]


def processed(array, steps):
    """Do what a description says, in numpy and as it is written there."""
    for step in steps:
        kwargs = step.kwargs
        match step.id:
            case "ensure_dtype":
                array = array.astype(kwargs.dtype)
            case "fixed_zero_mean_unit_variance":
                array = (array - kwargs.mean) / kwargs.std
            case "scale_linear":
                array = array * kwargs.gain + kwargs.offset
            case "clip":
                array = np.clip(array, kwargs.min, kwargs.max)
            case _:
                raise AssertionError(step.id)
    return array


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
def test_what_is_described_gives_the_test_output(exported):
    """As any program of the zoo would: the description, the TorchScript, and nothing of ours."""
    _, out, told = exported
    described = load_description(out, perform_io_checks=True)
    source, target = described.inputs[0], described.outputs[0]
    block = load_array(source.test_tensor)
    assert block.dtype == np.uint8
    assert list(block.shape) == [1, 1, *told["block"]]
    assert block.std() > 20  # tissue
    seen = processed(block, source.preprocessing)
    assert seen.dtype == np.float32
    with ZipFile(out) as archive:
        script = torch.jit.load(archive.open("weights.pt"))
    with torch.no_grad():
        answer = script(torch.from_numpy(seen)).numpy()
    got, wanted = processed(answer, target.postprocessing), load_array(target.test_tensor)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=0.05)
    fine = truth()[: wanted.shape[2], : wanted.shape[3], : wanted.shape[4]]
    rims = [h * f for h, f in zip(told["halo"], (4, 1, 1), strict=True)]
    inner = tuple(slice(r, -r) for r in rims)
    error = np.abs(wanted[0, 0][inner] - fine[inner].astype(float)).mean()
    thick = np.abs(block[0, 0].repeat(4, 0)[inner] - fine[inner].astype(float)).mean()
    assert error < 0.9 * thick
    assert [getattr(axis, "halo", 0) for axis in target.axes] == [0, 0, *rims]


@pytest.mark.slow
def test_an_export_that_is_imported_gives_the_networks_own_voxels(exported, tmp_path):
    name, out, _ = exported
    source, got = isochunk.sample_tissue(tmp_path / "in"), {}
    for model in (name, str(out)):
        target = f"{tmp_path}/{len(got)}"
        job = isochunk.Job(
            source=source,
            target=target,
            model=model,
            box="12:18,60:80,60:80",
            chunk="16,16,16",
            shard="none",
            levels=1,
        )
        assert isochunk.run(isochunk.plan(job)).complete
        got[model] = read_all(target).astype(int)
    one, other = got.values()
    assert one.std() > 20
    assert np.abs(one - other).max() <= 1


def pack(name: str, out: Path, **told) -> None:
    write_package(name, Packing(out, **told))


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        ("cubic", {}, "is an interpolation"),
        ("anyz-z2-10", {}, "takes any factor and a package has one; choose --factor"),
        ("fsrcnn-z4", {"block": (20, 16, 32)}, "nothing but the halo"),
        ("no-such-network", {}, "no model"),
        (
            "niiv-z2-10",
            {"factor": Fraction(4), "block": (32, 2, 32)},
            "where a block lies elsewhere",
        ),
    ],
)
def test_what_makes_no_package_is_refused(tmp_path, name, told, said):
    with pytest.raises(ModelError, match=said):
        pack(name, tmp_path / "out.zip", **told)
    assert not (tmp_path / "out.zip").exists()


def test_nothing_is_overwritten_and_a_package_is_a_zip(tmp_path):
    (tmp_path / "out.zip").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"exists; remove it"):
        pack("fsrcnn-z4", tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_bytes() == b"mine"
    with pytest.raises(UsageError, match=r"is no \.zip"):
        pack("fsrcnn-z4", tmp_path / "out.tar")

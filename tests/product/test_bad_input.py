"""Requests that cannot be carried out: exit code 2, a message that helps, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import servers
import torch
from jobs import noise, slow_model, tree_digest, write_source

from isochunk.cli.main import main
from isochunk.models.checkpoint import Card, save
from isochunk.models.fsrcnn import FSRCNN, FSRCNNConfig
from isochunk.storage.open import open_store

torch.set_num_threads(1)

SHAPE = (12, 64, 64)
SMALL = ("--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")

INSTANCE_NORM = """
import torch

class Net(torch.nn.Module):
    factor = (4, 1, 1)
    halo = (1, 1, 1)

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.InstanceNorm3d(1)

    def forward(self, x):
        return self.norm(x).repeat_interleave(4, dim=2)

def make():
    return Net()
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    """40 x 10 x 10 nm, 12 x 64 x 64 voxels."""
    return write_source(f"file://{tmp_path}/in", noise(SHAPE))


class Refused:
    """Runs a command that must be refused, and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> str:
        self.capsys.readouterr()
        code = main([*arguments, "--json"])
        out, err = self.capsys.readouterr()
        assert code == 2, (code, out, err)
        assert "Traceback" not in err
        message: str = json.loads(out)["error"]
        assert message in err
        return message

    def job(self, source: str, target: str, *options: str) -> str:
        """Refuse both the plan and the run of a job; return what the run said."""
        self("plan", source, target, *options)
        return self("run", source, target, *options)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """How to run a command that must be refused."""
    return Refused(capsys)


CUBIC = ("--model", "cubic")

OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown format": ((*CUBIC, "--format=tiff"), r"'tiff'.*precomputed.*ome-zarr"),
    "unknown model": (("--model", "cubik"), r"no model 'cubik'.*names are identity.*cubic"),
    "no model": ((), r"model must be given"),
    "another factor than the model's": (
        ("--model", "fsrcnn-z4", "--spacing=5,10,10"),
        r"has factor 4 x 1 x 1 .* ask for 8 x 1 x 1; choose --spacing to match or another --model",
    ),
    "identity that should scale": (
        ("--model", "identity", "--spacing=10,10,10"),
        r"identity.*\b4\b.*\b1\b",
    ),
    "block that cuts a shard": (
        (*CUBIC, "--chunk=16,16,16", "--shard=32,32,32", "--block=32,48,32"),
        r"block \(32, 48, 32\) cuts shard \(32, 32, 32\) along y; choose a multiple of 32",
    ),
    "shard that cuts a chunk": (
        (*CUBIC, "--chunk=16,16,16", "--shard=32,40,32"),
        r"shard \(32, 40, 32\) cuts chunk \(16, 16, 16\) along y; choose a multiple of 16",
    ),
    "empty box": ((*CUBIC, "--box=3:3,0:64,0:64"), r"3:3,0:64,0:64 is empty; each stop"),
    "inverted box": ((*CUBIC, "--box=5:3,0:64,0:64"), r"is empty; each stop"),
    "box outside": (
        (*CUBIC, "--box=0:12,0:64,32:96"),
        r"0:12,0:64,32:96 reaches outside.*0:12,0:64,0:64.*--box 0:12,0:64,32:64 works",
    ),
    "box beyond": ((*CUBIC, "--box=20:30,0:64,0:64"), r"outside.*--box 0:12,0:64,0:64 works"),
    "box that is no box": ((*CUBIC, "--box=0:12"), r"'0:12' cannot be read; write z0:z1"),
    "no room for a tile": (
        (*CUBIC, "--memory=1MiB"),
        r"and it has 1 MiB; raise --memory or choose a smaller --block",
    ),
    "no room for a tile of a network": (
        ("--model", "fsrcnn-z4", "--memory=300MiB", *SMALL),
        r"one tile of model 'fsrcnn.*MiB",
    ),
    "memory that is no size": ((*CUBIC, "--memory=1.2.3GiB"), r"'1.2.3GiB'; write a size as 8GiB"),
    "no memory": ((*CUBIC, "--memory=0"), r"memory is .?0.*at least"),
    "spacing that is no spacing": ((*CUBIC, "--spacing=10,10"), r"10,10"),
    "spacing of nothing": ((*CUBIC, "--spacing=0,10,10"), r"\b0\b"),
    "chunk of nothing": ((*CUBIC, "--chunk=0,16,16"), r"every axis must be at least 1"),
    "encoding of another format": (
        (*CUBIC, "--format=precomputed", "--encoding=zstd"),
        r"precomputed.*zstd.*raw.*jpeg.*png",
    ),
    "image encoding in zarr": (
        (*CUBIC, "--format=ome-zarr", "--encoding=jpeg"),
        r"zarr.*jpeg.*raw.*zstd",
    ),
    "16 bits in JPEG": (
        (*CUBIC, "--encoding=jpeg", "--dtype=uint16"),
        r"uint16 with encoding 'jpeg'",
    ),
    "unknown dtype": ((*CUBIC, "--dtype=float32"), r"'float32'.*uint8.*uint16"),
    "no workers": ((*CUBIC, "--workers=0"), r"workers is 0; it must be at least 1"),
    "no levels": ((*CUBIC, "--levels=0"), r"levels is 0; it must be at least 1"),
    "no time": ((*CUBIC, "--timeout=0"), r"--timeout is 0.*more than 0"),
    "a number that is none": ((*CUBIC, "--levels=many"), r"levels.*'many'"),
    "an option that is none": ((*CUBIC, "--lvels=2"), r"--lvels"),
    "secrets in the endpoint": (
        (*CUBIC, "--endpoint-url=http://user:hunter2@host:9000"),
        r"'http://host:9000' was given with a user name.*leave them out",
    ),
    "a configuration that is not there": ((*CUBIC, "--config=/nowhere.toml"), r"/nowhere.toml"),
    "a mask that is not there": ((*CUBIC, "--mask=/nowhere"), r"no .* volume at file:///nowhere"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options(
    refused: Refused, source: str, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    said = refused.job(source, f"{tmp_path}/out", *options)
    assert re.search(message, said), said
    assert "hunter2" not in said
    assert not (tmp_path / "out").exists()


def test_missing_source(refused: Refused, tmp_path: Path) -> None:
    said = refused.job(f"{tmp_path}/none", f"{tmp_path}/out", *CUBIC)
    assert re.search(rf"no .* volume at file://{tmp_path}/none.*check the URL", said)
    assert not (tmp_path / "out").exists()
    assert "check the URL" in refused("info", f"{tmp_path}/none")


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "gs://bucket/a|zip:x", "s3:///a", "https://me:hunter2@host/a"]
)
def test_urls(refused: Refused, tmp_path: Path, url: str) -> None:
    said = refused.job(url, f"{tmp_path}/out", *CUBIC)
    assert "hunter2" not in said
    assert not (tmp_path / "out").exists()
    assert "hunter2" not in refused.job(f"{tmp_path}/in", url, *CUBIC)


@pytest.mark.parametrize("keys", [None, ("AKIDOTHER", "SECRETOTHER999")], ids=["none", "wrong"])
def test_credentials(
    refused: Refused,
    s3: str,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keys: tuple[str, str] | None,
) -> None:
    write_source(f"{s3}/in", noise((4, 32, 32)))
    with monkeypatch.context() as other:
        other.setenv("HOME", str(tmp_path))
        other.setenv("AWS_EC2_METADATA_DISABLED", "true")
        other.delenv("AWS_ACCESS_KEY_ID")
        other.delenv("AWS_SECRET_ACCESS_KEY")
        if keys is not None:
            other.setenv("AWS_ACCESS_KEY_ID", keys[0])
            other.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
        for said in (
            refused.job(f"{s3}/in", f"{tmp_path}/out", *CUBIC),
            refused.job(source, f"{s3}/out", *CUBIC),
        ):
            assert re.search(r"s3://.*access refused.*credentials are looked for in AWS_", said)
            assert "OTHER" not in said
    assert not (tmp_path / "out").exists()
    assert open_store(f"{s3}/out").keys() == []


def test_a_target_offset_that_is_not_whole(refused: Refused, tmp_path: Path) -> None:
    """At factor 225/23 an offset of 1 section is no whole number of target voxels."""
    source = write_source(f"file://{tmp_path}/in", noise((46, 8, 8)), "45,4.6,4.6", (1, 0, 0))
    said = refused.job(source, f"{tmp_path}/out", *CUBIC)
    assert re.search(r"\b1\b.*225/23", said), said
    assert not (tmp_path / "out").exists()
    # The box that the message names works.
    box = re.search(r"\d+:\d+,\d+:\d+,\d+:\d+(?! of)", said.rpartition(";")[2])
    assert box is not None, said
    assert main(["plan", source, f"{tmp_path}/out", *CUBIC, f"--box={box.group()}"]) == 0


def test_a_target_with_another_job(refused: Refused, source: str, tmp_path: Path) -> None:
    target = f"{tmp_path}/out"
    assert main(["run", source, target, *CUBIC, *SMALL]) == 0
    before = tree_digest(tmp_path / "out")
    job = (tmp_path / "out" / ".isochunk" / "job.json").read_bytes()
    said = refused.job(source, target, "--model", "linear", *SMALL)
    assert re.search(r"holds another job: .*cubic.*linear.*Choose another target, or --", said)
    assert tree_digest(tmp_path / "out") == before
    assert (tmp_path / "out" / ".isochunk" / "job.json").read_bytes() == job


FOREIGN = {
    "precomputed": ("info", '{"scales": []}'),
    "zarr v3": ("zarr.json", '{"node_type": "group", "zarr_format": 3}'),
    "zarr v2": (".zgroup", '{"zarr_format": 2}'),
    "n5": ("attributes.json", '{"n5": "2.0.0"}'),
}


@pytest.mark.parametrize("options", [(), ("--format=ome-zarr",)], ids=["precomputed", "ome-zarr"])
@pytest.mark.parametrize(("name", "content"), FOREIGN.values(), ids=FOREIGN)
def test_a_target_with_foreign_data(
    refused: Refused, source: str, tmp_path: Path, name: str, content: str, options: tuple[str, ...]
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / name).write_text(content)
    said = refused.job(source, str(target), *CUBIC, *options)
    assert re.search(rf"already holds {re.escape(name)}.*choose another target, or --", said)
    assert [f.name for f in target.iterdir()] == [name]
    assert (target / name).read_text() == content


def test_source_and_target_that_are_one(refused: Refused, source: str, tmp_path: Path) -> None:
    before = tree_digest(tmp_path / "in")
    for target in (f"{tmp_path}/in", f"{tmp_path}/in/", f"precomputed://file://{tmp_path}/in"):
        said = refused.job(source, target, *CUBIC, "--overwrite")
        assert re.search(rf"source .*{tmp_path}/in; choose another target", said), said
    assert tree_digest(tmp_path / "in") == before


def test_overwriting_what_the_source_lies_in(refused: Refused, tmp_path: Path) -> None:
    """Deleting the target would delete the source."""
    source = write_source(f"file://{tmp_path}/data/in", noise((4, 32, 32)))
    (tmp_path / "data" / "info").write_text("{}")
    before = tree_digest(tmp_path)
    said = refused.job(source, f"{tmp_path}/data", *CUBIC, "--overwrite")
    assert re.search(r"source .*/data/in lies within the target .*/data; choose another", said)
    assert tree_digest(tmp_path) == before


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_a_target_that_cannot_be_written(
    refused: Refused, source: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    with servers.file_server(tmp_path) as url:
        said = refused.job(source, f"{url}/out", *CUBIC, *options)
    assert re.search(r"/out is read only; write to a path, s3:// or gs://", said)
    for target in (f"n5://{tmp_path}/out", "graphene://https://host/segmentation/table/x"):
        assert re.search(r"cannot be written; --format can be", refused.job(source, target, *CUBIC))
    assert not (tmp_path / "out").exists()


def test_a_target_url_against_the_format(refused: Refused, source: str, tmp_path: Path) -> None:
    said = refused.job(source, f"zarr://{tmp_path}/out", *CUBIC, "--format=precomputed")
    assert "drop one of them" in said
    assert not (tmp_path / "out").exists()


def test_shards_that_zarr_v2_does_not_have(refused: Refused, source: str, tmp_path: Path) -> None:
    said = refused.job(source, f"zarr2://{tmp_path}/out", *CUBIC, *SMALL)
    assert re.search(r"zarr v2 has no shards, \(32, 32, 32\) was asked for; write", said)
    assert not (tmp_path / "out").exists()
    # Nobody asked for shards here.
    assert main(["run", source, f"zarr2://{tmp_path}/out", *CUBIC]) == 0


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny checkpoint of factor 4."""
    torch.manual_seed(0)
    network = FSRCNN(FSRCNNConfig.compact(maps=4, shrunk=2, mappings=1, factor=4))
    save(tmp_path / "model", network, Card("tiny", "BSD-3-Clause", "nothing"))
    return tmp_path / "model"


def test_checkpoints(refused: Refused, checkpoint: Path, source: str, tmp_path: Path) -> None:
    target = f"{tmp_path}/out"
    assert main(["plan", source, target, "--model", str(checkpoint)]) == 0

    def broken(name: str, change: Callable[[Path], object]) -> str:
        copy = tmp_path / name
        shutil.copytree(checkpoint, copy)
        change(copy)
        return refused.job(source, target, "--model", str(copy))

    def tamper(folder: Path) -> None:
        weights = bytearray((folder / "weights.safetensors").read_bytes())
        weights[-1] ^= 1
        (folder / "weights.safetensors").write_bytes(weights)

    def other_arch(folder: Path) -> None:
        text = (folder / "model.json").read_text()
        (folder / "model.json").write_text(text.replace('"fsrcnn"', '"unknown"'))

    said = broken("tampered", tamper)
    assert re.search(r"has sha256 \w{64} but model.json records \w{64};.*fetch", said)
    assert "holds no model.json" in broken("bare", lambda f: (f / "model.json").unlink())
    assert "weights" in broken("light", lambda f: (f / "weights.safetensors").unlink())
    said = broken("garbled", lambda f: (f / "model.json").write_text("{"))
    assert re.search(r"cannot be read .*; fetch or save it again", said)
    assert "'unknown'" in broken("foreign", other_arch)
    assert not Path(target).exists()


def test_models_that_run_code(refused: Refused, source: str, tmp_path: Path) -> None:
    model = slow_model(tmp_path, 0)
    said = refused.job(source, f"{tmp_path}/out", "--model", model)
    assert re.search(r"is Python code .*--trust", said)
    said = refused.job(source, f"{tmp_path}/out", "--model", f"{tmp_path}/no.py:make", "--trust")
    assert "no file" in said
    (tmp_path / "bad.py").write_text("def make():\n    raise RuntimeError('sorry')\n")
    said = refused.job(source, f"{tmp_path}/out", "--model", f"{tmp_path}/bad.py:make", "--trust")
    assert re.search(r"failed: RuntimeError: sorry", said)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_tiled(refused: Refused, source: str, tmp_path: Path) -> None:
    (tmp_path / "norm.py").write_text(INSTANCE_NORM)
    model = ("--model", f"{tmp_path}/norm.py:make", "--trust")
    said = refused.job(source, f"{tmp_path}/out", *model)
    assert re.search(r"norm.py:make' cannot be tiled exactly.*--allow-inexact", said)
    assert not (tmp_path / "out").exists()
    assert main(["plan", source, f"{tmp_path}/out", *model, "--allow-inexact"]) == 0


TOML = {
    "misspelt key": ('modell = "cubic"', r"unknown modell; known are .*model"),
    "not TOML": ("model = ", r"is not TOML"),
    "wrong word": ('model = "cubic"\nformat = "tiff"', r"format is 'tiff'; choose one of precomp"),
    "text for a number": ('model = "cubic"\nworkers = "two"', r"workers is 'two'.*whole number"),
    "number for text": ("model = 3", r"model is 3.*text"),
    "a flag that is none": ('model = "cubic"\ntrust = "no"', r"trust is 'no'.*true or false"),
    "box of numbers": ('model = "cubic"\nbox = [0, 3]', r"box is \[0, 3\].*z0:z1"),
    "one number for a shape": ('model = "cubic"\nchunk = 16', r"chunk is 16; write Z,Y,X"),
    "one number for a spacing": ('model = "cubic"\nspacing = 8', r"spacing is 8.*Z,Y,X"),
    "fractional memory": ('model = "cubic"\nmemory = 1.5', r"memory is 1.5; write a size"),
}


@pytest.mark.parametrize(("text", "message"), TOML.values(), ids=TOML)
def test_configurations(
    refused: Refused, source: str, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "job.toml").write_text(text)
    said = refused.job(source, f"{tmp_path}/out", f"--config={tmp_path}/job.toml")
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()


def test_targets_that_isochunk_did_not_write(refused: Refused, source: str, tmp_path: Path) -> None:
    before = tree_digest(tmp_path / "in")
    for command in ("status", "audit", "repair"):
        assert re.search(r"no .isochunk/job.json", refused(command, source))
        assert "file:///nowhere" in refused(command, "/nowhere")
    assert tree_digest(tmp_path / "in") == before
    (tmp_path / "in" / ".isochunk").mkdir()
    (tmp_path / "in" / ".isochunk" / "job.json").write_text('{"plan": {}}')
    for command in ("status", "audit", "repair"):
        assert re.search(r"job.json is not a job of this version", refused(command, source))


def test_training_and_evaluation(refused: Refused, source: str, tmp_path: Path) -> None:
    out = ("--out", f"{tmp_path}/out")
    tiny = ("--variant=compact", "--width=2", "--levels=2", "--convs=1", "--factor=4", "--steps=2")
    assert "'sources'" in refused("train", *out, *tiny)
    said = refused("train", "--source", source, *out, *tiny)
    assert re.search(r"isotropic", said), said
    assert "arch 'unet'" in refused("train", "--source", source, *out, "--arch=unet")
    assert "volume at file:///nowhere" in refused("train", "--source=/nowhere", *out, *tiny)
    assert not (tmp_path / "out").exists()
    cube = write_source(f"file://{tmp_path}/cube", noise((32, 32, 32)), "8,8,8")
    said = refused("evaluate", "--truth", cube, "--model=cubik")
    assert "no model 'cubik'" in said
    assert "factor" in refused("evaluate", "--truth", cube, "--factor=0")
    assert "volume at file:///nowhere" in refused("evaluate", "--truth=/nowhere")


def test_a_folder_that_may_not_be_written(source: str, tmp_path: Path) -> None:
    """Only the storage can tell, so the run fails, but in words."""
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("")
        target = f"{tmp_path}/file/out"
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        target = f"{tmp_path}/closed/out"
    assert main(["run", source, target, *CUBIC]) in (1, 2)

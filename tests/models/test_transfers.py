"""Blocks that are staged, launched and fetched, and what can go wrong in each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
import torch
from networks import tissue
from user_networks import unet

from isochunk.core.geometry import Box
from isochunk.core.spec import Intensity, ModelSpec
from isochunk.errors import DeviceError, ModelError, PredictionError, may_pass
from isochunk.models.interface import predict
from isochunk.models.load import device_of
from isochunk.models.predictor import TorchPredictor
from isochunk.models.tiling import SameSizeEngine
from isochunk.models.transfers import HostTransfers

LOST = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."
NO_ENGINE = "GET was unable to find an engine to execute this computation"
ONE = Fraction(1)
SPEC = ModelSpec("unet", "module", (Fraction(4), ONE, ONE), (16, 32, 32), (1, 8, 8))
WRITE = Box.from_shape((16, 24, 24))


@dataclass
class Failing(HostTransfers):
    """A way to the device on which one step fails, some times."""

    step: str
    error: Exception
    times: int = 1
    asked: list[str] = field(default_factory=list)

    def _try(self, step):
        self.asked.append(step)
        if step == self.step and self.asked.count(step) <= self.times:
            raise self.error

    def upload(self, voxels):
        self._try("upload")
        return super().upload(voxels)

    def begin(self, upload):
        self._try("begin")
        return super().begin(upload)

    def room(self, shape, dtype):
        self._try("room")
        return super().room(shape, dtype)

    def download(self, target, finite, begun):
        self._try("download")
        return Waiting(super().download(target, finite, begun), self)


@dataclass
class Waiting:
    download: object
    way: Failing

    def wait(self):
        self.way._try("wait")
        return self.download.wait()


def predictor_of(module=None, precision="fp32") -> TorchPredictor:
    engine = SameSizeEngine(module or unet(), SPEC)
    device, full = torch.device("cpu"), Intensity.full_range("uint8")
    return TorchPredictor(SPEC, engine, device, precision, full, (64, 64, 64))


def block(predictor):
    read = SPEC.read_box(WRITE)
    return tissue(read.shape, "uint8"), read, WRITE


WANTED = predict(predictor_of(), *block(None))


def test_blocks_may_be_staged_before_others_are_fetched():
    predictor = predictor_of()
    source, read, write = block(predictor)
    staged = [predictor.stage(s, read, write) for s in (source, 255 - source, source)]
    launched = [s.launch() for s in staged]
    got = [one.fetch() for one in reversed(launched)]
    np.testing.assert_array_equal(got[0], WANTED)
    np.testing.assert_array_equal(got[2], WANTED)
    assert (got[1] != WANTED).any()
    assert all(one.compute_s() > 0 for one in launched)


@pytest.mark.parametrize("step", ["upload", "begin", "room", "download"])
def test_memory_that_runs_out_in_any_step_is_survived(step):
    predictor = predictor_of()
    predictor.transfers = Failing(step, torch.OutOfMemoryError("CUDA out of memory."))
    np.testing.assert_array_equal(predict(predictor, *block(predictor)), WANTED)
    assert predictor.halvings == (step != "upload")  # another block's memory may be free by then


def test_memory_that_stays_short_fails_the_block():
    predictor = predictor_of()
    predictor.transfers = Failing("room", torch.OutOfMemoryError("Tried to allocate 3 GiB"), 99)
    with pytest.raises(PredictionError, match=r"that is its smallest.*Tried to allocate 3 GiB"):
        predict(predictor, *block(predictor))


@pytest.mark.parametrize("step", ["upload", "begin", "room", "download", "wait"])
def test_a_lost_device_is_said_in_any_step(step):
    predictor = predictor_of()
    predictor.transfers = Failing(step, RuntimeError(LOST))
    with pytest.raises(DeviceError, match=r"is lost to process .* illegal memory access") as raised:
        predict(predictor, *block(predictor))
    assert may_pass(raised.value)
    assert "kernel errors might" not in str(raised.value)


def test_other_errors_are_left_as_they_are():
    predictor = predictor_of()
    predictor.transfers = Failing("room", RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        predict(predictor, *block(predictor))


class Picky(torch.nn.Module):
    """As cuDNN, which says so where it lacks memory for its workspace."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.network, self.limit = unet(), limit

    def forward(self, x):
        if x.numel() > self.limit:
            raise RuntimeError(NO_ENGINE)
        return self.network(x)


def test_an_engine_that_is_not_found_is_memory_that_is_short():
    whole = int(np.prod(SPEC.read_box(WRITE).shape))
    predictor = predictor_of(Picky(whole - 1))
    np.testing.assert_array_equal(predict(predictor, *block(predictor)), WANTED)
    assert predictor.halvings > 0
    with pytest.raises(PredictionError, match="unable to find an engine"):
        predict(predictor_of(Picky(1)), *block(predictor))


def test_overflow_in_half_precision_is_named():
    network = unet()
    with torch.no_grad():
        next(iter(network.parameters())).mul_(1e5)
    assert np.isfinite(predict(predictor_of(network), *block(None))).all()
    with pytest.raises(PredictionError, match=r"fp16 ends at 65504.*bf16 or fp32"):
        predict(predictor_of(network, "fp16"), *block(None))


def test_a_gpu_has_a_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cuda") == device_of("auto") == torch.device("cuda", 1)
    assert device_of("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ModelError, match=r"sees 2 GPU\(s\)"):
        device_of("cuda:2")
    assert device_of("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(ModelError, match=r"sees no GPU.*driver"):
        device_of("cuda:0")

"""What is said of GPUs, and of a cuDNN that computes wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from isochunk.core.gpus import Gpu, SeenGpus, device_summary, wrong_cudnn
from isochunk.models.gpus import _cudnn, _driver, seen_gpus

H100 = Gpu("GPU-1", "H100", 80 << 30)
A100 = Gpu("GPU-2", "A100", 40 << 30)


def seen(cudnn: str = "9.10.2") -> SeenGpus:
    return SeenGpus((H100, A100), "2.13.0+cu130", "13.0", cudnn, "580.95.05")


def test_a_summary_names_each_once() -> None:
    assert device_summary([]) is None
    assert device_summary([(H100, seen()), (A100, seen()), (A100, seen("9.19.0"))]) == {
        "name": "A100, H100",
        "count": 2,
        "torch": "2.13.0+cu130",
        "cuda": "13.0",
        "cudnn": "9.10.2, 9.19.0",
        "driver": "580.95.05",
    }


@pytest.mark.parametrize(
    ("cudnn", "precision", "wrong"),
    [
        ("9.7.1", "fp16", None),
        ("9.8.0", "fp16", "9.8.0"),
        ("9.14.0", "bf16", "9.14.0"),
        ("9.15.1", "bf16", None),
        ("9.10.2", "fp32", None),
        ("9.10.2", "tf32", None),
        ("9.10.2, 9.19.0", "fp16", "9.10.2"),
        (None, "fp16", None),
    ],
)
def test_which_cudnn_is_wrong(cudnn: str | None, precision, wrong: str | None) -> None:
    assert wrong_cudnn({"cudnn": cudnn}, precision) == wrong
    assert wrong_cudnn(None, precision) is None


def test_how_versions_are_read(tmp_path: Path) -> None:
    assert [_cudnn(n) for n in (None, 90100, 91002, 92000)] == [None, "9.1.0", "9.10.2", "9.20.0"]
    file = tmp_path / "version"
    assert _driver(file) is None
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
        "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"
    )
    assert _driver(file) == "550.54.15"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\n")
    assert _driver(file) == "580.95.05"


def test_where_torch_sees_no_gpu_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("asked on"))
    assert seen_gpus().gpus == ()

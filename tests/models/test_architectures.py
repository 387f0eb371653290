"""Every architecture as a user meets it: trained on real sections, evaluated, run on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import Client
from jobs import command

import isochunk
from isochunk.core.geometry import Box
from isochunk.evaluation.evaluate import EvaluateConfig, evaluate

pytestmark = pytest.mark.slow

SELF = ("--mode=self", "--patch=80,1,64", "--factor=10")
PLANAR = (*SELF, "--variant=planar", "--residual=cubic")
AXIAL = (*SELF, "--residual=true")
LATERAL = ("--mode=supervised", "--width=4", "--depths=1,1,1,1")
SMALL = {
    "fsrcnn": (*PLANAR, "--maps=3", "--shrunk=2", "--mappings=1"),
    "srunet": (*PLANAR, "--width=2", "--levels=2", "--convs=1"),
    "a2i": (*AXIAL, "--width=4", "--levels=2", "--window=4", "--heads=1,2", "--blocks=1"),
    "niiv": (*AXIAL, "--blocks=1", "--width=8", "--hidden=16", "--layers=1"),
    "pssr": (*LATERAL, "--patch=1,64,64"),
    "pssr-mf": (*LATERAL, "--patch=5,64,64"),
}
"""As small as they get; the first four learn to make sections ten times thinner."""


@pytest.mark.parametrize("arch", SMALL)
def test_train_evaluate_run(arch: str, shared_data: Path, tmp_path: Path, client: Client) -> None:
    sections = f"precomputed://file://{shared_data}/vnc_sstem"
    lateral = arch in ("pssr", "pssr-mf")
    model = f"{tmp_path}/{arch}"
    trained = command(
        "train",
        "--arch",
        arch,
        "--source",
        sections,
        "--out",
        model,
        "--device=cpu",
        "--steps=6",
        "--batch=2",
        "--validate-every=3",
        *SMALL[arch],
    )
    assert trained["stopped"] == "finished"
    assert {path.name for path in Path(model).iterdir()} >= {"model.json", "weights.safetensors"}

    evaluation = evaluate(
        EvaluateConfig(
            f"{shared_data}/medulla_fibsem_250.ome.zarr",
            (model,),
            factor=4 if lateral else 10,
            box=Box((0, 0, 0), (12 if lateral else 80, 64, 64)),
        )
    )
    figures = {row.model: row.psnr for row in evaluation.figures}
    assert set(figures) == {"nearest", "linear", "cubic", model}
    if not lateral:  # it starts from the interpolation, and a few steps do not spoil it
        assert figures[model] > figures["cubic"] - 1

    job = isochunk.Job(
        source=sections,
        target=f"{tmp_path}/out",
        model=model,
        box="2:6,100:164,300:380",
        chunk="32,32,32",
        shard="none",
        block="32,256,192" if lateral else "64,64,64",
    )
    plan = isochunk.plan(job)
    finer = (1, 4, 4) if lateral else (10, 1, 1)
    assert plan.target.box.shape == tuple(n * f for n, f in zip((4, 64, 80), finer, strict=True))
    report = isochunk.run(plan, client)
    assert report.complete
    assert report.seam is not None
    assert report.seam.max_difference <= 1
    assert isochunk.audit(job.target).complete

"""Users' networks by valid convolutions, through the whole product: blocks equal the whole.

The whole is the network's own answer to a volume that numpy continued by reflection, see
``test_exactness``.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import user_networks
from jobs import read_all, write_source
from networks import tissue
from whole import Model, assert_equals_whole

import isochunk
from isochunk.models.user_model import open_user_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]

TRACED = ("unet", "residual", "nnunet", "kernels", "resizing", "slices", "finest")
SHAPE = (9, 41, 37)
OFFSET = (3, -5, 11)  # on no pooling grid
BLOCKS = {
    "shards": {"chunk": "8,16,16", "shard": "16,32,32", "block": "32,32,32"},
    "odd": {"chunk": "13,17,29", "shard": "none", "block": "13,17,29"},
    "one, small tiles": {"chunk": "64,64,64", "memory": "805MiB"},
}


@pytest.mark.parametrize("name", TRACED)
def test_any_block_gives_the_whole(tmp_path: Path, name: str) -> None:
    voxels, model = tissue(SHAPE, "uint8"), f"{user_networks.__file__}:{name}"
    opened = open_user_model(model, trust=True)
    factor = opened.spec.factor[0]
    url = write_source(f"file://{tmp_path}/in", voxels, f"{10 * factor},10,10", OFFSET)
    whole = Model(model, opened.spec, opened.module)
    exact = whole.whole(voxels, OFFSET, Fraction(factor))
    for blocks, options in BLOCKS.items():
        target = f"{tmp_path}/{blocks}"
        plan = isochunk.plan(
            isochunk.Job(source=url, target=target, model=model, trust=True, levels=1, **options)
        )
        assert plan.summary()["padded_because"] == ""
        if "memory" in options:
            assert np.prod(plan.tile) < np.prod(plan.stages[0].block) / 2
        report = isochunk.run(plan)
        assert report.complete, report.errors
        assert_equals_whole(read_all(target), exact)

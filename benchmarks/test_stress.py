"""The stress table, of a small volume: what damages do, where they are compared, and mending."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from jobs import write_source
from stress import (
    ROWS,
    Case,
    Row,
    blank,
    blurred,
    damaged,
    filled,
    lost,
    measure,
    noisy,
    shifted,
    table,
    uneven,
    untouched,
)

from isochunk.core.geometry import Box
from isochunk.core.synthetic import synthetic_pair
from isochunk.evaluation.config import EvaluateConfig
from isochunk.storage.open import open_volume

NETWORK = "fsrcnn-z4"
ZEROS = ("one section blank: in it", "one section blank: 2 to 4 away")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An isotropic volume of 14 sections of four voxels."""
    _, voxels = synthetic_pair((14, 48, 48), 4, seed=1)
    url = write_source(f"{tmp_path_factory.mktemp('truth')}/em", voxels, "8,8,8")
    config = EvaluateConfig(url, (NETWORK,), factor=Fraction(4), degradation="avg")
    return Case(open_volume(url), Box.from_shape(voxels.shape), config)


def sections() -> np.ndarray:
    return synthetic_pair((14, 48, 48), 4, seed=1)[0]


@pytest.mark.parametrize("damage", [row.damage for row in ROWS[1:]])
def test_damages_are_one_draw_and_change_what_they_should(damage) -> None:
    stack = sections()
    seen = damaged(stack, damage)
    assert (seen.shape, seen.dtype) == (stack.shape, stack.dtype)
    assert np.array_equal(seen, damaged(stack, damage))
    changed = (seen != stack).any((1, 2))
    if damage in (blank, filled):
        assert list(np.flatnonzero(changed)) == [lost(len(stack))]
    else:
        assert changed.mean() > 0.7


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        (uneven(2, 2), uneven(8, 8)),
        (shifted(0.5), shifted(2)),
        (noisy(5), noisy(20)),
        (blurred(0.5), blurred(2)),
    ],
)
def test_more_is_worse(weak, strong) -> None:
    stack = sections().astype(float)
    errors = [((damaged(sections(), d) - stack) ** 2).mean() for d in (untouched, weak, strong)]
    assert 0 == errors[0] < errors[1] < errors[2]


@pytest.mark.slow
def test_rows_are_compared_where_they_say_and_mending_is_a_line_of_its_own(case: Case) -> None:
    rows = (ROWS[0], *(row for row in ROWS if row.name in ZEROS), Row("uneven", uneven(20, 20)))
    found = dict(measure(case, rows, mend=True))
    clean, inside, away, uneven_ = (found[row.name] for row in rows)
    assert set(clean) == {"cubic", NETWORK}
    assert clean[NETWORK] > clean["cubic"]
    for model in clean:
        assert inside[model] < away[model] - 5
        assert uneven_[model] < clean[model] - 3
        assert found["clean, mended"][model] == clean[model]
        assert found[f"{ZEROS[0]}, mended"][model] > inside[model] + 5
        assert found["uneven, mended"][model] > uneven_[model] + 2
    lines = list(table(case, iter(found.items())))
    assert len(lines) == 3 + len(found)
    assert f"| clean | {clean['cubic']:.2f} | {clean[NETWORK] - clean['cubic']:+.2f} |" in lines

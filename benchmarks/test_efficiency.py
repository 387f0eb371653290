"""The table of efficiency, of a volume that is done in a moment: that its rows run and agree."""

from __future__ import annotations

import numpy as np
import pytest
from efficiency import measure
from efficiency_tables import factors, goals_table, table
from workload import check_same

BARE = "bare forward, small tiles"
LOOP = "hand loop 128, tuned"
USERS = "isochunk, user's .py"
CLUSTER = "LocalCluster 1 x 2, user's .py"
FACTORS = {"E", "E_halo", "E_compute", "E_overlap"}


@pytest.mark.slow
def test_rows_of_a_user_agree_and_have_their_factors() -> None:
    runs = measure(1, (8, 64, 64), [BARE, LOOP, USERS, CLUSTER])  # raises where outputs differ
    for name in (LOOP, USERS, CLUSTER):
        found = factors(runs, name)
        assert found.keys() == FACTORS, name
        assert found["E"] == pytest.approx(
            found["E_halo"] * found["E_compute"] * found["E_overlap"]
        )
        assert 0 < found["E_halo"] < 1
        assert 0 < found["E_overlap"] <= 1
    for name in (USERS, CLUSTER):
        (row,) = runs[name]
        assert 0 < row["first_s"] <= row["wall_s"]
        # A job this small is little more than its process, by which plans may be off so much.
        assert row["peak_gib"] < row["planned_gib"] + 0.3, name
    lines = table(runs, 4 * 8 * 64 * 64).splitlines()
    assert len({line.count(" | ") for line in lines}) == 1
    assert len(lines) == 2 + len(runs)
    assert f"| {factors(runs, USERS)['E']:.2f} |" in goals_table(runs)


def test_factors_and_goals_of_made_up_runs() -> None:
    """Two processes that compute for 30 s each of 40, twice the multiply-adds of bare forward."""
    cluster = {"wall_s": 40.0, "compute_s": 60.0, "e_halo": 0.5, "processes": 2}
    runs = {
        "bare forward": [{"wall_s": 12.0}, {"wall_s": 10.0}, {"wall_s": 11.0}],
        "bare forward, small tiles": [{"wall_s": 10.0}] * 3,
        "hand loop 256, tuned": [{"wall_s": 30.0}],
        "hand loop 128, tuned": [{"wall_s": 40.0}],
        USERS: [{"wall_s": 20.0, "peak_gib": 1.1, "planned_gib": 1.0}, {"wall_s": 20.0}],
        CLUSTER: [cluster],
    }
    assert factors(runs, CLUSTER) == pytest.approx(
        {"E": 0.25, "E_halo": 0.5, "E_overlap": 0.75, "E_compute": 2 / 3}
    )
    goals = goals_table(runs)
    assert "| 1.5x faster | 2x faster | 1.50x faster |" in goals
    assert "1.10 (isochunk, user's .py)" in goals
    assert "11.0 (10.0-12.0)" in table(runs, 10**6)


def test_outputs_that_differ_are_refused() -> None:
    ours = np.full((100, 100, 10), 7, np.uint8)
    other = ours.copy()
    other[0, 0, :5] += 1  # 5 of 100,000: rounding
    check_same(ours, other, "other")
    other[0, 0, 0] += 1
    with pytest.raises(ValueError, match="other differs by up to 2 grey levels"):
        check_same(ours, other, "other")
    with pytest.raises(ValueError, match="wrote"):
        check_same(ours, other[1:], "other")

"""How many threads compute: which numbers are tried, and which is taken."""

from __future__ import annotations

import threading

import pytest
import torch

from isochunk.models.threads import candidates, choose_threads, fewest_of_fastest


@pytest.mark.parametrize(
    ("told", "cores", "sharing", "wanted"),
    [
        (1, 8, 1, (1, 2, 4, 8)),
        (8, 8, 2, (8, 1, 2, 4)),
        (3, 12, 2, (3, 1, 2, 4, 6)),
        (1, 2, 2, (1,)),
        (2, 2, 5, (2, 1)),
        (4, 64, None, (4,)),
    ],
)
def test_numbers_worth_trying(
    told: int, cores: int, sharing: int | None, wanted: tuple[int, ...]
) -> None:
    assert candidates(told, cores, sharing) == wanted


def test_fewer_threads_where_more_help_little() -> None:
    assert fewest_of_fastest({4: 0.98, 2: 1.0, 1: 1.9}) == 2
    assert fewest_of_fastest({8: 1.0, 1: 4.0, 2: 2.0, 4: 1.2}) == 8
    assert fewest_of_fastest({8: 3.0, 1: 1.0}) == 1


def test_threads_started_later_take_what_was_chosen() -> None:
    before = torch.get_num_threads()
    found: list[int] = []
    try:
        assert choose_threads((1, 2)) in (1, 2)
        assert choose_threads((3,)) == 3
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [3]

"""Which GPU each worker computes on."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from isochunk.planning.seats import (
    Seat,
    Seating,
    least_device_bytes,
    seat_workers,
    seats_here,
)

GPUS = ("a", "b", "c", "d")


def test_processes_that_see_all_gpus_are_spread() -> None:
    assert seats_here(4, GPUS).seats == {str(n): Seat(n, 1) for n in range(4)}
    six = seats_here(6, GPUS).seats
    assert [six[str(n)] for n in range(6)] == [
        Seat(0, 2),
        Seat(1, 2),
        Seat(2, 1),
        Seat(3, 1),
        Seat(0, 2),
        Seat(1, 2),
    ]


def test_a_process_keeps_the_gpu_that_dask_cuda_shows_it_first() -> None:
    seen = {f"w{n}": [GPUS[(n + i) % 4] for i in range(4)] for n in range(4)}
    assert set(seat_workers(seen).seats.values()) == {Seat(0, 1)}


def test_who_sees_only_one_is_not_crowded() -> None:
    seats = seat_workers({"first": ["a", "b"], "second": ["a"]}).seats
    assert seats == {"first": Seat(1, 1), "second": Seat(0, 1)}


def test_containers_that_see_the_same_gpu_share_it() -> None:
    seating = seat_workers({"pod-1": ["a"], "pod-2": ["a"], "pod-3": ["b"]})
    assert seating.of("pod-1") == seating.of("pod-2") == Seat(0, 2)
    assert seating.of("pod-3") == Seat(0, 1)
    assert seating.of("came later") == Seat(0, 2), "the smallest share there is"


@given(
    seen=st.dictionaries(
        st.text("wxyz0123", min_size=1, max_size=3),
        st.lists(st.sampled_from(GPUS), min_size=1, max_size=4, unique=True),
        max_size=12,
    )
)
def test_seats_are_there_counted_right_and_do_not_depend_on_order(
    seen: dict[str, list[str]],
) -> None:
    seating = seat_workers(seen)
    assert seating == seat_workers(dict(reversed(seen.items())))
    taken = {name: seen[name][seat.index] for name, seat in seating.seats.items()}
    assert taken.keys() == seen.keys()
    used = Counter(taken.values())
    assert all(seating.seats[name].sharing == used[gpu] for name, gpu in taken.items())
    assert seating.most_sharing == max(used.values(), default=1)
    same = [name for name, gpus in seen.items() if set(gpus) == set(GPUS)]
    if len(same) == len(seen) > 0:
        assert max(used.values()) - min(used[gpu] for gpu in GPUS) <= 1


def test_no_workers_no_seats() -> None:
    assert Seating({}).of("any") == Seat(0, 1)


def test_the_least_that_a_worker_has_of_its_gpu() -> None:
    alone, shared = Seat(0, 1), Seat(1, 3)
    assert least_device_bytes([(alone, 1000, None), (shared, 3000, None)], 0.6) == (600, 600)
    assert least_device_bytes([(alone, 1000, 100), (shared, 3000, 3000)], 0.5) == (100, 500)
    assert least_device_bytes([(shared, 3000, 1500)], 1.0) == (500, 500)

"""Names of encodings, and what is assumed of them where nothing is measured."""

from __future__ import annotations

import pytest

from isochunk.core.encodings import (
    LEVELS,
    SHARES,
    USUAL_LEVELS,
    WORDS,
    default_encoding,
    encoded_share,
    read_encoding,
    word_and_level,
)
from isochunk.core.job import Job
from isochunk.errors import UsageError
from isochunk.storage import arrays, precomputed


def test_what_users_may_write_is_what_can_be_written() -> None:
    assert set(WORDS) == {*arrays.ENCODINGS, *precomputed.ENCODINGS} == set(SHARES)
    assert set(LEVELS) == set(USUAL_LEVELS)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_defaults_can_be_written(dtype: str) -> None:
    assert dtype in precomputed.ENCODINGS[default_encoding("precomputed", dtype)]
    for format_ in ("zarr2", "zarr3"):
        assert default_encoding(format_, dtype) in arrays.ENCODINGS


def test_every_level_has_a_share_and_more_make_no_more_of_it() -> None:
    for word in WORDS:
        for dtype in ("uint8", "uint16"):
            levels = [f"{word}:{level}" for level in LEVELS.get(word, ())]
            shares = [encoded_share(encoding, dtype) for encoding in levels or [word]]
            assert shares == sorted(shares, reverse=True)
            assert 0 < min(shares) <= max(shares) <= 1
    assert encoded_share("zstd:9", "uint8") < encoded_share("zstd:8", "uint8")
    assert encoded_share("zstd", "uint8") == encoded_share("zstd:1", "uint8")
    assert encoded_share("blosc-zstd", "uint8") == encoded_share("blosc-zstd:6", "uint8")


def test_a_level_is_read() -> None:
    assert word_and_level("png") == ("png", None)
    assert word_and_level("zstd:22") == ("zstd", 22)
    assert (
        Job(source="a", target="b", model="c", encoding="blosc-zstd:9").encoding == "blosc-zstd:9"
    )


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("webp", "encoding is 'webp'; choose one of raw, gzip, png"),
        ("zstd:0", "zstd takes a level from 1 to 22, as zstd:11"),
        ("zstd:", "zstd takes a level from 1 to 22"),
        ("blosc-zstd:10", "a level from 1 to 9"),
        ("png:3", "of levels png takes none"),
        (3, "encoding is 3; choose one of"),
    ],
)
def test_what_is_no_encoding(encoding: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_encoding(encoding, "encoding")

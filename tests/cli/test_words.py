"""What a terminal shows: amounts in words, widths, colours, and readers that stop reading."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import noise, write_source

from isochunk.core import amounts as units

WORDS = [
    (units.in_bytes, 999, "999 B"),
    (units.in_bytes, 999_900, "1 MB"),
    (units.in_bytes, 18_874_368, "18.9 MB"),
    (units.in_bytes, 3.4e15, "3.4 PB"),
    (units.in_memory, 2_567_781_422, "2.39 GiB"),
    (units.in_voxels, 33_554_432, "33.6 Mvoxel"),
    (units.in_time, 13.678, "13.7 s"),
    (units.in_time, 59.9, "1 min"),
    (units.in_time, 252, "4 min 12 s"),
    (units.in_time, 7199, "1 h 59 min"),
    (units.in_time, 188_000, "2 d 4 h"),
    (units.in_percent, 0, "0 %"),
    (units.in_percent, 1, "100 %"),
    (units.in_percent, 0.9835, "98 %"),
    (units.in_percent, 0.9999, "99.99 %"),
    (units.in_percent, 0.0047, "0.5 %"),
    (units.in_percent, 1e-9, "1e-07 %"),
    (lambda n: units.counted(n, "block"), 1, "1 block"),
    (lambda n: units.counted(n, "block"), 12_000, "12,000 blocks"),
]


@pytest.mark.parametrize(("say", "amount", "said"), WORDS)
def test_amounts(say, amount, said: str) -> None:
    assert say(amount) == said


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_source(f"file://{tmp_path}/in", noise((9, 64, 70)))


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell with ``isochunk`` in it."""
    program = f"{sys.executable} -m isochunk.cli"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("isochunk", program)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def on_terminal(*arguments: str, **environment: str) -> str:
    """Run on a terminal of 100 columns and return what it shows, colours included."""
    reading, writing = pty.openpty()
    command = [sys.executable, "-m", "isochunk.cli", *arguments]
    told = {"TERM": "xterm-256color", "COLUMNS": "100", **environment}
    with subprocess.Popen(
        command, stdout=writing, stderr=writing, env={**os.environ, **told}
    ) as process:
        os.close(writing)
        shown = b""
        while True:
            try:
                piece = os.read(reading, 1 << 16)
            except OSError:  # Linux ends a terminal so
                break
            if not piece:
                break
            shown += piece
        process.wait()
    os.close(reading)
    return shown.decode()


@pytest.mark.parametrize("width", [60, 100])
def test_nothing_is_wider_than_the_terminal(source: str, tmp_path: Path, width: int) -> None:
    for command in ("models", "models anyz-z2-10", f"plan {source} {tmp_path}/out --model cubic"):
        done = shell(f"isochunk {command}", COLUMNS=str(width))
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= width


def test_a_table_is_of_a_hundred_columns_where_there_is_no_terminal() -> None:
    lines = shell("isochunk models", COLUMNS="").stdout.splitlines()
    assert 80 < max(map(len, lines)) <= 100
    assert "\x1b" not in "".join(lines)


def test_colours_are_for_terminals_that_want_them(source: str) -> None:
    good, bad = on_terminal("models", "cubic"), on_terminal("info", f"{source}/nothing")
    assert "\x1b[32mjoin exactly" in good
    advice = re.search(r"\x1b\[1;31m(.*?)\x1b\[0m; \x1b\[36m(.*?)\x1b\[0m", bad, re.S)
    assert advice, bad
    assert "no precomputed" in advice.group(1)
    plain = on_terminal("models", "cubic", NO_COLOR="1")
    assert "join exactly" in plain
    assert "\x1b[3" not in plain


def test_a_reader_may_stop_reading() -> None:
    done = shell("isochunk models | true")
    assert (done.returncode, done.stderr) == (0, "")


def test_words_are_plain_ascii(source: str, tmp_path: Path) -> None:
    done = shell(f"isochunk run {source} {tmp_path}/out --model cubic", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "complete: 1 of 1 block" in done.stdout
    assert done.stdout.isascii()


def completions(line: str) -> set[str]:
    """Ask as a shell does, which reads the answer from file descriptor 8."""
    done = shell(
        "isochunk 8>&1 9>/dev/null 1>/dev/null",
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS="\n",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    assert done.returncode == 0, done.stderr
    return set(filter(None, (word.strip() for word in done.stdout.split("\n"))))


def test_the_tab_key_completes_commands_and_their_options() -> None:
    assert {"run", "repair", "report"} <= completions("isochunk r")
    assert "--model" in completions("isochunk run a b --mod")
    assert completions("isochunk run a b --precision b") == {"bf16"}


def test_a_terminal_shows_a_bar_that_moves(source: str, tmp_path: Path) -> None:
    pieces = ("--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")
    shown = on_terminal("run", source, f"{tmp_path}/out", "--model", "cubic", *pieces)
    bars = re.findall(r"(\d+)%\x1b\[0m (\d+) of (\d+) blocks", shown)
    assert bars[-1] == ("100", bars[-1][2], bars[-1][2])
    assert re.search(r"[\d.]+ \wvoxel/s", shown)
    assert re.search(r"complete: (\d+) of \1 blocks", shown)

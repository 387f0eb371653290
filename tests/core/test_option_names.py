"""Fields named for those who type options and for those who write Python."""

from __future__ import annotations

import ast
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import isochunk
from isochunk.cli.main import COMMANDS
from isochunk.core.job import Job
from isochunk.core.option_names import option, option_of
from isochunk.evaluation.config import EvaluateConfig

PACKAGE = Path(isochunk.__file__).parent


def test_both_names_where_they_differ() -> None:
    assert option("source_spacing", "Z,Y,X") == "--source-spacing Z,Y,X (source_spacing in Python)"
    assert option("timeout_s") == "--timeout (timeout_s in Python)"
    assert option("box") == "--box"


def words() -> Iterator[tuple[str, str]]:
    """Yield the file and the text of every string of the package that is no docstring."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        alone = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if text and id(node) not in alone:
                yield str(path.relative_to(PACKAGE)), node.value


def options() -> set[str]:
    """Return the options of all commands."""
    names = {"--json", "--verbose", "--endpoint-url", "--version"}
    for command in COMMANDS:
        parser = ArgumentParser()
        command.arguments(parser)
        names |= set(parser._option_string_actions)
    return names


def test_messages_name_options_that_there_are() -> None:
    known = options()
    named = {
        (file, name)
        for file, text in words()
        if not file.startswith("cluster/")  # other programs' options
        for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
    }
    assert len(named) > 20
    assert {(file, name) for file, name in named if name not in known} == set()


def test_messages_name_the_field_too() -> None:
    """Where option and field differ, a message has both, so it comes from :func:`option`."""
    names = {f.name for cls in (Job, EvaluateConfig) for f in fields(cls)}
    apart = {option_of(name) for name in names if option_of(name) != f"--{name}"}
    found = {
        (file, name)
        for file, text in words()
        if not file.startswith("cli/")
        for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
        if name in apart
    }
    assert found == set()

"""The docstrings below the fields of a dataclass: the one place where a field is described."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise


def documented(cls: type) -> dict[str, str]:
    """Return what a class, and the classes it is made of, say of their fields.

    Args:
        cls: its source, and theirs, can be read.

    Returns:
        For each field that has one, its docstring on one line, without the full stop at its end.
    """
    told: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in pairwise(body.body):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    told[name] = " ".join(text.split()).removesuffix(".")
    return told

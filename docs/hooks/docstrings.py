"""Docstrings and fields of the package, as the pages of the reference show them.

Docstrings name things as Sphinx does, ``:class:`~isochunk.Job```; pages show them as code. A field
that is declared by ``field(default=...)`` is shown with its default alone.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|mod):`(~?)([\w.]+)`")


class Docstrings(griffe.Extension):
    """Rewrites what was read of the package."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Turn Sphinx's roles into code, without the path where ``~`` leaves it out."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(shown, obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Leave of ``field(default=...)`` the default."""
        match attr.value:
            case griffe.ExprCall(arguments=arguments):
                for argument in arguments:
                    match argument:
                        case griffe.ExprKeyword(name="default", value=value):
                            attr.value = value


def shown(role: re.Match[str]) -> str:
    """Write a role as Markdown."""
    name = role[2].rpartition(".")[2] if role[1] else role[2]
    return f"`{name}`"

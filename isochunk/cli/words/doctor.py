"""What is installed and what storage answers, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from isochunk.cli.words.layout import Fact, facts, marked
from isochunk.core.amounts import counted, in_memory


def told(found: Mapping[str, Any]) -> RenderableType:
    """Say what support asks first."""
    memory, gpus = found["memory_bytes"], found["gpus"]
    rows: list[Fact] = [
        ("isochunk", found["isochunk"]),
        ("Python", f"{found['python']}, {found['platform']}"),
        (
            "machine",
            counted(found["cores"], "core")
            + ("" if memory is None else f", {in_memory(memory)} of memory free"),
        ),
        ("GPUs", ", ".join(gpus) if gpus else "none seen"),
        ("packages", _versions(found["packages"])),
        *((f"[{extra}]", _extra(extra, has)) for extra, has in found["extras"].items()),
        *(
            (service, f"credentials in {', '.join(places)}" if places else "no credentials found")
            for service, places in found["credentials"].items()
        ),
    ]
    if "storage" in found:
        rows.append(("storage", found["storage"]["url"]))
        rows += [
            (f"  {tried['what']}", marked(tried["answer"], good=tried["answer"] == "ok"))
            for tried in found["storage"]["tried"]
        ]
    return facts(rows)


def _versions(packages: Mapping[str, str | None]) -> RenderableType:
    said = ", ".join(f"{name} {version or 'MISSING'}" for name, version in packages.items())
    return said if all(packages.values()) else marked(said, good=False)


def _extra(extra: str, packages: Mapping[str, str | None]) -> str:
    missing = [name for name, version in packages.items() if version is None]
    if len(missing) == len(packages):
        return f"not installed: pip install 'isochunk[{extra}]'"
    said = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    return f"{said}; without {', '.join(missing)}" if missing else said

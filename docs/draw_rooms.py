"""Draw the rooms of the package into docs/architecture.md, from the import contract.

``python docs/draw_rooms.py`` redraws the page; with ``--check`` it fails where the page is old.
"""

import argparse
import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- rooms: python docs/draw_rooms.py -->", "<!-- end of rooms -->"
WIDTH = 92


def layers() -> list[list[str]]:
    """Return the rooms of each floor, top floor first, as import-linter holds them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = (c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [floor.split(" | ") for floor in contract["layers"]]


def told(room: str) -> str:
    """Return the first sentence of what a room says of itself."""
    path = ROOT / "isochunk" / room / "__init__.py"
    module = path if path.is_file() else path.parent.with_suffix(".py")
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".")


def drawing() -> str:
    """Return the rooms as boxes on floors; imports go down only."""
    rule = "─" * WIDTH
    lines = [f"┌{rule}┐"]
    for floor in layers():
        lines += [f"│ {f'{room:<11} {told(room)}':<{WIDTH - 1}}│" for room in floor]
        lines.append(f"├{rule}┤")
    lines[-1] = f"└{rule}┘"
    return "\n".join(lines)


def page() -> str:
    """Return the page with the rooms as they are now."""
    before, _, rest = PAGE.read_text().partition(START)
    return f"{before}{START}\n```\n{drawing()}\n```\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    wanted = page()
    if not parser.parse_args().check:
        PAGE.write_text(wanted)
    elif PAGE.read_text() != wanted:
        sys.exit(f"{PAGE.name} is not as the rooms are; run python {Path(__file__).name}")

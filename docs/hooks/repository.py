"""Files of the repository that pages link to, as pages of the site.

A link like ``../examples/submit.py`` works on GitHub; the site holds what lies below ``docs``. So
what pages and the navigation name beyond it is brought in, under its path in the repository, and
links to it are turned. Files that such a page names as code, beside itself, become links.
Nothing has to be known of where the repository is hosted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^()\s#]+)(#[^()\s]*)?(?=\))")
"""Target and anchor of a link in Markdown that is neither a URL nor an anchor alone."""
NAMED = re.compile(r"(?<!\[)`([\w-]+\.(?:py|sh|toml|yaml)|Dockerfile)`")
"""A file beside a page that is named as code."""
FENCES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yaml": "yaml"}
"""Languages of files that are shown as code."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Bring in what the navigation and the pages name, and what that names in turn."""
    wanted = [ROOT / path for path in paths(config.nav) if not (DOCS / path).exists()]
    wanted += [path for page in files.documentation_pages() for path in linked(source_of(page))]
    seen: set[Path] = set()
    while wanted:
        path = wanted.pop()
        if path in seen or path.is_relative_to(DOCS) or not path.is_file():
            continue
        seen.add(path)
        files.append(brought_in(path, config))
        wanted += linked(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that go by the folders of the repository into links of the site."""
    own = source_of(page.file)

    def turned(match: re.Match[str]) -> str:
        there = own.parent.joinpath(match[1]).resolve()
        if own.is_relative_to(DOCS) and there.is_relative_to(DOCS):
            return match[0]
        here = Path(page.file.src_uri).parent
        uri = os.path.relpath(uri_of(there), here) if there.is_relative_to(ROOT) else match[1]
        return uri + (match[2] or "")

    def named(match: re.Match[str]) -> str:
        beside = own.parent / match[1]
        return f"[{match[0]}]({beside.name})" if beside.is_file() else match[0]

    if own.suffix != ".md":
        return markdown
    return LINK.sub(turned, markdown if own.is_relative_to(DOCS) else NAMED.sub(named, markdown))


def paths(nav: object) -> Iterator[str]:
    """Yield the pages that a navigation names."""
    match nav:
        case str():
            yield nav
        case list():
            for item in nav:
                yield from paths(item)
        case dict():
            yield from paths(list(nav.values()))


def linked(path: Path) -> Iterator[Path]:
    """Yield what a page links to and what it names, as paths; other files link to nothing."""
    if path.suffix == ".md":
        text = path.read_text()
        names = [] if path.is_relative_to(DOCS) else NAMED.finditer(text)
        for match in (*LINK.finditer(text), *names):
            yield path.parent.joinpath(match[1]).resolve()


def source_of(file: File) -> Path:
    """Return where a page of the site comes from: below ``docs`` or elsewhere."""
    if file.abs_src_path is not None:
        return Path(file.abs_src_path).resolve()
    return ROOT / file.src_uri.removesuffix(".md")


def uri_of(path: Path) -> str:
    """Return the path of a file's page in the site's sources."""
    if path.is_relative_to(DOCS):
        return str(path.relative_to(DOCS))
    uri = str(path.relative_to(ROOT))
    return uri if path.suffix == ".md" else f"{uri}.md"


def brought_in(path: Path, config: MkDocsConfig) -> File:
    """Make a page of a file: of Markdown as it is, of other files a page that shows them."""
    uri = uri_of(path)
    if path.suffix == ".md":
        return File.generated(config, uri, abs_src_path=str(path))
    fence = "`" * 5
    name = path.relative_to(ROOT)
    text = f"# {name}\n\n{fence}{FENCES.get(path.suffix, 'text')}\n{path.read_text()}\n{fence}\n"
    inclusion = InclusionLevel.NOT_IN_NAV
    return File.generated(config, uri, content=text, inclusion=inclusion)

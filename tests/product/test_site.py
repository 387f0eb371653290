"""The site of `make docs`: built as users build it, and looked through."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import isochunk
from isochunk.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Elements that a browser fetches without being asked, and the attribute that says what."""


class Seen(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.html = page.read_text()
        self.feed(self.html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.ids.add(found.get("id", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in FETCHED and found.get("rel") != "canonical":
            self.fetched.append(found.get(FETCHED[tag], ""))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Seen]:
    """Each page; that of errors is for servers, and has the addresses of one."""
    return {page: Seen(page) for page in site.rglob("*.html") if page.name != "404.html"}


def test_what_is_built_is_what_make_docs_builds():
    rule = re.search(r"^docs: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule is not None
    assert rule[1].split()[-3:] == ["mkdocs", "build", "--strict"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_has_a_page_with_each_of_its_options(site, pages, command, capsys):
    with pytest.raises(SystemExit):
        main([command.name, "--help"])
    usage = capsys.readouterr().out.partition("\n\n")[0]
    options = {"--help", *re.findall(r"(?<=\[)--[a-z-]+", usage)}
    assert len(options) > 3
    seen = pages[site / "reference" / "cli" / f"{command.name}.html"]
    assert options <= set(re.findall(r"--[a-z-]+", seen.text))
    assert {option.removeprefix("--") for option in options} <= seen.ids
    assert not re.search("<dd>\\s*</dd>", seen.html), "an argument without a word on it"
    assert f"{command.name}.html" in pages[site / "reference/cli/index.html"].links


def test_each_public_name_is_documented(site, pages):
    seen = pages[site / "reference" / "python.html"]
    assert {f"isochunk.{name}" for name in isochunk.__all__} <= seen.ids
    text = " ".join(seen.text.split())
    for name in isochunk.__all__:
        first = (getattr(isochunk, name).__doc__ or "").splitlines()[0]
        assert re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", first).replace("``", "") in text, name
    assert ":class:" not in seen.text
    assert "field(" not in seen.text


def test_fields_become_tables(site, pages):
    text = pages[site / "reference" / "json.html"].text
    assert "<!-- fields" not in (site / "reference" / "json.html").read_text()
    for key in ("lateral_over_cubic", "best_psnr", "membrane_dice", "terminated"):
        assert key in text


def test_links_lead_somewhere(site, pages):
    """Also those of the navigation and of pages that are made; strict builds see Markdown's."""
    dead = defaultdict(set)
    for page, seen in pages.items():
        for link in seen.links:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            there = (page.parent / unquote(to.path)).resolve() if to.path else page
            there = there / "index.html" if there.is_dir() else there
            anchored = there in pages and to.fragment
            if not there.is_file() or (anchored and unquote(to.fragment) not in pages[there].ids):
                dead[str(page.relative_to(site))].add(link)
    assert dead == {}


def test_nothing_is_fetched_from_elsewhere(site, pages):
    far = {url for seen in pages.values() for url in seen.fetched if urlsplit(url).netloc}
    assert far == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet


def test_files_that_pages_name_are_in_the_site(site, pages):
    """Links that lead out of docs/ on GitHub lead to pages here."""
    assert "isochunk.run(plan, client)" in pages[site / "examples/submit.py.html"].text
    assert "slurm" in pages[site / "deploy/slurm/cluster.toml.html"].text
    assert "cluster.toml.html" in pages[site / "deploy/slurm/index.html"].links
    assert (site / "pictures" / "before_after.png").is_file()
    assert not list(site.rglob("*.py"))

"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reliability
import servers
from clusters import local_cluster
from distributed import Client
from jobs import Command
from servers import ObjectServer

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

CHROMIUM_ARGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
]

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, help="page whose tables this run fills")


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--reliability")
    if page is not None and not hasattr(config, "workerinput"):  # workers of xdist send their rows
        config.pluginmanager.register(reliability.Filler(page))


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Add a row to a table of docs/reliability.md: its name, then its cells by column."""
    return lambda table, **cells: record_property(f"{reliability.PREFIX}{table}", cells)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real volumes; skips where only the project itself is present."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real volumes are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, driven by playwright; without it, tests skip or, in CI, fail."""
    chromium = shutil.which("chromium")
    if chromium is None:
        message = "needs a browser: apt install chromium"
        if os.environ.get("ISOCHUNK_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A running S3 server; use the fixture ``s3`` to also have its environment."""
    with servers.s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A running GCS server; use the fixture ``gcs`` to also have its environment."""
    with servers.gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


def _use(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{servers.BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def s3(s3_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty place on S3, with the environment that reaches it."""
    return f"s3://{_use(s3_server, monkeypatch)}"


@pytest.fixture
def gcs(gcs_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty place on GCS, with the environment that reaches it."""
    return f"gs://{_use(gcs_server, monkeypatch)}"


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A cluster of two worker processes."""
    with local_cluster(2) as client:
        yield client


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """How to run commands."""
    monkeypatch.setenv("COLUMNS", "100")  # pytest-xdist has 80
    return Command(capsys)

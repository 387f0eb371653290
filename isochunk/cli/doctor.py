"""What support asks first: what is installed, what it runs on, and what storage answers."""

from __future__ import annotations

import argparse
import os
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import isochunk
from isochunk.cli.options import DONE, INCOMPLETE, Command, Result, add_fields, given
from isochunk.cli.words import doctor as words
from isochunk.core.job import RunOptions
from isochunk.errors import IsochunkError
from isochunk.host.cores import usable_cores
from isochunk.host.memory import usable_memory_bytes
from isochunk.storage.access import Access

NEEDED = (
    "numpy",
    "torch",
    "dask",
    "distributed",
    "tensorstore",
    "cloud-volume",
    "safetensors",
)
"""Packages of every installation whose versions matter."""
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "cuda": ("dask-cuda",),
    "view": ("neuroglancer", "bokeh", "prometheus-client", "matplotlib"),
    "files": ("h5py", "mrcfile", "tifffile"),
    "zoo": ("bioimageio.spec",),
    "jobqueue": ("dask-jobqueue",),
    "kubernetes": ("dask-kubernetes",),
}
"""Those of extras, by the extra that brings them."""
NAMED = {
    "AWS": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    "Google Cloud": ("GOOGLE_APPLICATION_CREDENTIALS",),
}
"""Environment variables that name credentials, by service."""
FILES = {
    "AWS": ("~/.aws/credentials", "~/.aws/config"),
    "Google Cloud": ("~/.config/gcloud/application_default_credentials.json",),
}
"""Files that hold them."""
MARK = ".isochunk-doctor-"
"""Begins the name of the object that is written and deleted again."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk doctor``."""
    parser.add_argument("url", nargs="?", help="bucket or folder to be listed")
    parser.add_argument(
        "--write", action="store_true", help="write a small object there, read and delete it"
    )
    add_fields(parser, RunOptions, ("timeout_s", "requester_pays"))


def doctor(options: argparse.Namespace) -> Result:
    """``isochunk doctor``."""
    from isochunk.models.gpus import seen_gpus

    seen = seen_gpus()
    result: dict[str, Any] = {
        "isochunk": isochunk.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "memory_bytes": usable_memory_bytes(),
        "gpus": [gpu.name for gpu in seen.gpus],
        "packages": {name: installed(name) for name in NEEDED},
        "extras": {
            extra: {name: installed(name) for name in names} for extra, names in OPTIONAL.items()
        },
        "credentials": {service: list(credentials(service)) for service in NAMED},
    }
    if options.url is None:
        return result, DONE
    told = given(options, RunOptions, ("timeout_s", "requester_pays"))
    access = Access(endpoint_url=options.endpoint_url, **told)
    result["storage"] = storage = examine(options.url, access, write=options.write)
    return result, DONE if all(t["answer"] == "ok" for t in storage["tried"]) else INCOMPLETE


def installed(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def credentials(service: str) -> Iterator[str]:
    """Name where credentials of a service were found; what they are is never read."""
    yield from (name for name in NAMED[service] if os.environ.get(name))
    yield from (path for path in FILES[service] if Path(path).expanduser().is_file())


def examine(url: str, access: Access, *, write: bool) -> dict[str, Any]:
    """Try what a run needs of a place, in order; nothing is tried after what fails."""
    from isochunk.storage.open import open_store

    store = open_store(url, access)
    key = f"{MARK}{uuid.uuid4().hex}"
    steps: list[tuple[str, Callable[[], object]]] = [("list", lambda: store.keys(MARK))]
    if write:
        steps += [
            ("write", lambda: store.put(key, b"isochunk doctor")),
            ("read", lambda: store.get(key)),
            ("delete", lambda: store.delete([key])),
        ]
    tried = []
    for name, step in steps:
        try:
            step()
        except IsochunkError as error:
            tried.append({"what": name, "answer": str(error)})
            break
        tried.append({"what": name, "answer": "ok"})
    return {"url": store.url, "tried": tried}


COMMANDS = (
    Command("doctor", "what is installed, and what storage answers", arguments, doctor, words.told),
)

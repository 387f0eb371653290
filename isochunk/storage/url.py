"""Volume URLs: what users type, taken apart. Pure, apart from the home folder of ``~``.

Accepted: plain paths, ``file://``, ``s3://``, ``gs://``, ``http(s)://``, and S3-compatible
``s3+https://host/bucket/path``, each bare, as ``format://URL`` or as ``URL|format:path``. A data
set of an HDF5 file is ``file.h5:/path`` or ``file.h5|hdf5:/path``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from urllib.parse import unquote, urlsplit

from isochunk.errors import UsageError

FileFormat: TypeAlias = Literal["tiff", "hdf5", "mrc"]
NamedFormat: TypeAlias = (
    Literal["precomputed", "zarr", "zarr2", "zarr3", "n5", "graphene"] | FileFormat
)
Scheme: TypeAlias = Literal["file", "s3", "gs", "http", "https", "graphene", "memory"]

FORMATS: dict[str, NamedFormat] = {
    "precomputed": "precomputed",
    "neuroglancer-precomputed": "precomputed",
    "zarr": "zarr",
    "zarr2": "zarr2",
    "zarr3": "zarr3",
    "n5": "n5",
    "graphene": "graphene",
    "tiff": "tiff",
    "hdf5": "hdf5",
    "mrc": "mrc",
}
"""Format names as neuroglancer, tensorstore and cloud-volume write them."""

HELP = (
    "write a path or file://, s3://, gs://, http(s)://, with precomputed://, zarr://, zarr2://, "
    "zarr3://, n5://, graphene://, tiff://, hdf5:// or mrc:// in front or |precomputed:, |zarr3: "
    "... behind; a data set is file.h5:/path"
)

FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
"""Formats of single files, and of folders of sections."""

MIN_BUCKET_NAME = 3

_DATASET = re.compile(r"(?P<file>.*\.(?:h5|hdf5|hdf)):(?P<dataset>/.*)", re.IGNORECASE)
_QUERY = re.compile(r"\?[^\s\"'\]|]*")
_USERINFO = re.compile(r"(?<=://)[^/\s@\"']*@")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a volume is stored."""

    scheme: Scheme
    """Kind of storage."""
    bucket: str
    """Bucket, or host and port; empty for files."""
    path: str
    """Key prefix or path, without a slash at the end."""
    format: NamedFormat | None = None
    """Format the user named, None to recognise it."""
    endpoint_url: str | None = None
    """S3-compatible server that the URL itself names."""
    dataset: str = ""
    """Path of a data set in an HDF5 file, without slashes around it; empty where none is named."""

    @property
    def url(self) -> str:
        """The canonical URL, without format and credentials."""
        if self.scheme == "file":
            return f"file://{self.path}{self._inside}"
        if self.scheme == "graphene":
            return f"graphene://{self.path}"
        path = self.path.strip("/")
        if self.endpoint_url:
            return f"s3+{self.endpoint_url}/{self.bucket}/{path}"
        return f"{self.scheme}://{self.bucket}/{path}"

    @property
    def _inside(self) -> str:
        """How the URL goes on inside the file."""
        if not self.dataset:
            return ""
        inside = f":/{self.dataset}"
        return inside if _DATASET.fullmatch(f"{self.path}{inside}") else f"|hdf5{inside}"


def parse_url(text: str) -> Location:
    """Take a volume URL apart.

    Raises:
        UsageError: unknown scheme or format, or credentials inside the URL.
    """
    base, *adapters = text.strip().split("|")
    named: NamedFormat | None = None
    inner = ""
    dataset = ""
    scheme, found, rest = base.partition("://")
    if found and scheme in FORMATS:
        named, base = FORMATS[scheme], rest
    if match := _DATASET.fullmatch(base):
        named, base, dataset = named or "hdf5", match["file"], match["dataset"].strip("/")
    for adapter in adapters:
        name, _, inner_path = adapter.partition(":")
        if name not in FORMATS:
            raise UsageError(f"format {name!r} in {clean(text)!r} is not known; {HELP}")
        named = FORMATS[name]
        if named == "hdf5":
            dataset = inner_path.strip("/")
        else:
            inner = "/".join(filter(None, (inner, inner_path.strip("/"))))
    if named == "graphene":
        return Location("graphene", "", _without_credentials(base, text), named)
    return replace(_locate(base, inner, named), dataset=dataset)


def _locate(base: str, inner: str, named: NamedFormat | None) -> Location:
    scheme, found, rest = base.partition("://")
    if not found:
        if not base:
            raise UsageError(f"the volume URL is empty; {HELP}")
        path = Path(base).expanduser().resolve() / inner
        return Location("file", "", path.as_posix(), named)
    if scheme == "file":
        path = Path(unquote(rest)) / inner
        if not path.is_absolute():
            raise UsageError(f"{base!r} needs an absolute path: file:///folder/volume")
        return Location("file", "", path.as_posix(), named)
    _without_credentials(base, base)
    bucket, _, path_text = rest.partition("/")
    joined = "/".join(part for part in (path_text.strip("/"), inner) if part)
    if not bucket:
        raise UsageError(f"{base!r} names no bucket or host; {HELP}")
    if scheme in ("s3", "gs") and len(bucket) < MIN_BUCKET_NAME:
        raise UsageError(f"{bucket!r} in {base!r} is no bucket name; they have 3 to 63 characters")
    match scheme:
        case "s3" | "gs" | "http" | "https" | "memory":
            return Location(scheme, bucket, joined, named)
        case "s3+http" | "s3+https":
            name, _, key = joined.partition("/")
            return Location("s3", name, key, named, f"{scheme[3:]}://{bucket}")
        case _:
            raise UsageError(f"scheme {scheme!r} of {base!r} is not known; {HELP}")


def _without_credentials(url: str, text: str) -> str:
    """Refuse what would end up in logs, metadata and links."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise UsageError(
            f"{clean(text)!r} was given with a user name or a query; leave them out, credentials "
            "are taken from the environment and the files of the storage libraries"
        )
    return url.rstrip("/")


def clean(text: str) -> str:
    """Strip user names, passwords and query strings (signatures) from URLs within a text."""
    return _USERINFO.sub("", _QUERY.sub("", text))

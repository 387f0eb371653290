"""How storage is reached: limits, retries, drivers, and errors in words."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import Spacing
from isochunk.core.job import Job
from isochunk.core.limits import CACHE_BYTES
from isochunk.core.option_names import option
from isochunk.errors import (
    AccessError,
    CorruptDataError,
    NotFoundError,
    StorageError,
    StorageTimeoutError,
    UsageError,
)
from isochunk.storage.axes import Pick
from isochunk.storage.url import Location, clean, parse_url


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach storage. Credentials are never part of it."""

    endpoint_url: str | None = None
    """S3-compatible server; None for ``AWS_ENDPOINT_URL``, or else AWS itself."""
    cache_bytes: int = CACHE_BYTES
    """Decoded chunks kept for neighbouring reads (halos), per opened source volume."""
    timeout_s: float = 120.0
    """Longest wait for one operation, retries included."""
    retries: int | None = None
    """Further tries of a request after 429, 5xx and lost connections; None for as many as fit
    into three quarters of ``timeout_s``."""
    requests: int = 32
    """Requests in flight to S3, to GCS and to http servers, over all volumes of a process."""
    slow_start: float | None = None
    """Reads and writes a second, each, that a process starts with; None for no limit."""
    spacing: Spacing | None = None
    """Voxel size (z, y, x) for volumes whose metadata has none."""
    requester_pays: str | None = None
    """Google Cloud project that is billed for requests to buckets whose requester pays."""
    channel: int | None = None
    """Which channel to read of volumes that have several."""
    time: int | None = None
    """Which time point to read of volumes that have several."""
    missing: Literal["auto", "background", "error"] = "auto"
    """What an absent object means. ``auto``: background where the format says so (zarr, N5, and
    precomputed written by isochunk), an error in other precomputed volumes."""

    def __post_init__(self) -> None:
        """Check the endpoint, which is recorded and shown.

        Raises:
            UsageError: it is no http(s) URL, or holds credentials.
        """
        if self.endpoint_url:
            check_endpoint(self.endpoint_url)

    @classmethod
    def for_job(cls, job: Job) -> Access:
        """Return how a job reaches storage."""
        return cls(
            endpoint_url=job.endpoint_url,
            timeout_s=job.timeout_s,
            requests=job.requests,
            slow_start=job.slow_start,
            requester_pays=job.requester_pays,
            spacing=job.source_spacing,
            channel=job.channel,
            time=job.time,
            missing=job.missing,
        )

    @property
    def pick(self) -> Pick:
        """The channel and the time point that were asked for."""
        return Pick(self.channel, self.time)

    def beside(self) -> Access:
        """Return how volumes beside the source are reached: its channel and time are not theirs."""
        return replace(self, channel=None, time=None)

    def endpoint(self, location: Location) -> str | None:
        """Return the S3 endpoint for a location, None for AWS.

        Raises:
            UsageError: that of the environment is no http(s) URL, or holds credentials.
        """
        chosen = location.endpoint_url or self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
        if not chosen:
            return None
        check_endpoint(chosen)
        return chosen.rstrip("/")


def check_endpoint(url: str) -> None:
    """Check the URL of an S3-compatible server.

    Raises:
        UsageError: it is no http(s) URL, or holds credentials.
    """
    if parse_url(url).scheme not in ("http", "https"):
        raise UsageError(f"endpoint {url!r} is no URL; write http(s)://host:port")


FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 8.0
"""Pauses before a request is tried again; they double. tensorstore's own start at 1 s: a few 503s
would cost minutes instead of seconds."""

DOUBLING = "20m"
"""A slow start doubles its rate in this time, as Google advises for Cloud Storage."""

SILENCE = 0.25
"""A request that gets no byte for this share of the time allowed is dropped and made again."""

SERVICES = ("s3", "gcs", "http")
"""Kinds of storage as tensorstore's contexts name them."""

RATE_LIMITED = {"s3": "experimental_s3_rate_limiter", "gs": "experimental_gcs_rate_limiter"}
"""What starts slowly, by scheme: named both in a context and in what uses it."""


def retries_within(timeout_s: float) -> int:
    """Return how many further tries fit into three quarters of the time allowed, at least 1.

    The rest is for the requests themselves: what lasts ends with its cause, not with a time-out.
    """
    left, pause, retries = 0.75 * timeout_s, FIRST_PAUSE_S, 0
    while (left := left - min(pause + FIRST_PAUSE_S, LONGEST_PAUSE_S)) >= 0:
        pause, retries = min(2 * pause, LONGEST_PAUSE_S), retries + 1
    return max(1, retries)


def limits_json(access: Access) -> JsonObject:
    """Return the part of a tensorstore context that the volumes of one process share."""
    context: JsonObject = {}
    for service in SERVICES:
        context[f"{service}_request_concurrency"] = {"limit": access.requests}
    if access.slow_start is not None:
        rate = access.slow_start
        for name in RATE_LIMITED.values():
            context[name] = {"read_rate": rate, "write_rate": rate, "doubling_time": DOUBLING}
    return context


def retries_json(access: Access) -> JsonObject:
    """Return the part of a tensorstore context that is one volume's own: when it tries again.

    tensorstore adds up to the first pause to each pause, but never exceeds the longest: that one
    is drawn here, or processes that were refused together would come back together. It also keeps
    volumes apart: of two that are alike in all, the second would be given the credentials of the
    first for as long as anything, an error's traceback too, holds that one.
    """
    retries = retries_within(access.timeout_s) if access.retries is None else access.retries
    longest = random.uniform(0.75, 1) * LONGEST_PAUSE_S
    policy = {
        "max_retries": retries,
        "initial_delay": f"{FIRST_PAUSE_S}s",
        "max_delay": f"{longest:.9f}s",
    }
    return {f"{service}_request_retries": policy for service in SERVICES}


def kvstore_json(location: Location, access: Access, *, anonymous: bool = False) -> JsonObject:
    """Return the tensorstore kvstore spec of a location."""
    path = f"{location.path.strip('/')}/" if location.path else ""
    limiter = RATE_LIMITED.get(location.scheme) if access.slow_start is not None else None
    limited = {limiter: limiter} if limiter else {}
    match location.scheme:
        case "file":
            return {"driver": "file", "path": f"{location.path.rstrip('/')}/"}
        case "memory":
            return {"driver": "memory", "path": path}
        case "gs":
            project = access.requester_pays
            billed = {"gcs_user_project": {"project_id": project}} if project else {}
            return {"driver": "gcs", "bucket": location.bucket, "path": path, **limited, **billed}
        case "s3":
            spec: JsonObject = {"driver": "s3", "bucket": location.bucket, "path": path, **limited}
            if anonymous:
                spec["aws_credentials"] = {"type": "anonymous"}
            elif "AWS_ACCESS_KEY_ID" in os.environ:
                # First in the default chain anyway; asking the chain litters standard error.
                spec["aws_credentials"] = {"type": "environment"}
            endpoint = access.endpoint(location)
            if endpoint:
                # Without a region tensorstore asks the server for it, which few answer.
                spec["endpoint"] = endpoint
                spec["aws_region"] = region(os.environ) or "us-east-1"
            return spec
        case _:
            base_url = f"{location.scheme}://{location.bucket}"
            return {"driver": "http", "base_url": base_url, "path": f"/{path}"}


def names_credentials(environment: Mapping[str, str], home: Path) -> bool:
    """Tell whether AWS credentials are configured; their values are not looked at.

    Without any, public buckets are read anonymously, and a machine's role is tried after that.
    """
    names = (
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CONFIG_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    files = (home / ".aws" / "credentials", home / ".aws" / "config")
    return any(environment.get(n) for n in names) or any(f.is_file() for f in files)


def region(environment: Mapping[str, str]) -> str | None:
    """Return the AWS region that the environment names."""
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")


CREDENTIALS = {
    "cloud-volume on s3": (
        "cloud-volume takes AWS keys from ~/.cloudvolume/secrets/aws-secret.json, or from "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY if AWS_SESSION_TOKEN is set too (may be empty)"
    ),
    "s3": (
        "credentials are looked for in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
        "~/.aws/credentials, and the machine's or container's role"
    ),
    "gs": (
        "credentials are looked for in GOOGLE_APPLICATION_CREDENTIALS, in what 'gcloud auth "
        "application-default login' stores, and the machine's service account"
    ),
    "graphene": "a token is looked for in ~/.cloudvolume/secrets/cave-secret.json",
    "file": "check the owner and mode of the files",
}
"""Where each kind of storage looks for credentials."""

S3_PAYING = (
    "; if the requester pays for the bucket, copy the volume first with a tool that can say so, as "
    "aws s3 sync: tensorstore cannot"
)
"""S3 does not tell such a refusal from others. tensorstore 0.1.86 sends ``x-amz-requester-payer``
where S3 wants ``x-amz-request-payer``, and neither with lists."""

_REFUSED = re.compile(
    r"PERMISSION_DENIED|UNAUTHENTICATED|AccessDenied|Forbidden|response code: 40[13]\b"
    r"|40[13] Client Error|AuthenticationError|InvalidAccessKeyId|SignatureDoesNotMatch"
    r"|ExpiredToken|UnsupportedAlgorithm|MissingSecurityHeader|MissingAuthenticationToken"
    r"|credentials? (?:provider|chain)|[Nn]o credentials",
)
_UNPAID = re.compile(r"requester pays bucket|UserProjectMissing", re.I)
_DENIED = re.compile(r"AccessDenied|PERMISSION_DENIED: Unknown")
_NOT_FOUND = re.compile(
    r"\bNOT_FOUND\b|404 Client Error|EmptyVolumeException|InfoUnavailableError|NoSuchBucket"
)
_TIMEOUT = re.compile(r"\bDEADLINE_EXCEEDED\b|[Tt]imed? ?out|Timeout was reached")
_CORRUPT = re.compile(
    r"FAILED_PRECONDITION: Error reading"
    r"|\bDATA_LOSS\b|\bINVALID_ARGUMENT\b|\bOUT_OF_RANGE\b|[Dd]ecod|[Cc]orrupt|[Tt]runcat"
    r"|[Uu]nexpected end|[Cc]hecksum|crc32c|zstd|blosc|zlib|JPEG|PNG",
)
_TRAILER = re.compile(
    r"\s*\[(?:tensorstore_spec|source locations|http_response_body)=.*"
    # What a server answers may repeat the request, signature and all.
    r"|(?<=Failed to parse response metadata): .*",
    re.S,
)


def without_secrets(error: Exception) -> RuntimeError:
    """Repeat what a storage library raised, without what may hold credentials."""
    return RuntimeError(clean(_TRAILER.sub("", str(error))).strip())


def _admission(raw: str, location: Location) -> str:
    """Return what may help where access is refused."""
    if _UNPAID.search(raw):
        project = option("requester_pays", "PROJECT")
        return f"its requester pays: name the project to be billed with {project}"
    hint = CREDENTIALS.get(location.scheme, "the server does not give it to everybody")
    return hint + S3_PAYING if location.scheme == "s3" and _DENIED.search(raw) else hint


def storage_error(error: Exception, doing: str, location: Location) -> StorageError:
    """Put what a storage library raised into words, without credentials.

    Raise it from :func:`without_secrets`, since tracebacks show causes.

    Args:
        error: what was raised.
        doing: what was attempted, with the box or key.
        location: where.
    """
    raw, text = str(error), str(without_secrets(error))
    where = f"{doing} {location.url}"
    if isinstance(error, TimeoutError):
        return StorageTimeoutError(
            f"{where}: no answer within the time allowed; check the storage, or allow more time "
            f"with {option('timeout_s')}"
        )
    if _UNPAID.search(raw) or _REFUSED.search(raw):
        return AccessError(f"{where}: access refused: {text}; {_admission(raw, location)}")
    if _TIMEOUT.search(text):
        return StorageTimeoutError(f"{where}: storage timed out: {text}; check the storage")
    if _NOT_FOUND.search(text):
        return NotFoundError(f"{where}: not found: {text}; check the URL")
    if _CORRUPT.search(text):
        return CorruptDataError(
            f"{where}: the stored bytes do not decode: {text}; store the object again"
        )
    return StorageError(f"{where}: storage failed after retries: {text}")

"""The Dask cluster that a job asks for: a word, or a TOML file. Nothing is started here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from isochunk.core.job import RunOptions
from isochunk.core.text_forms import read_seconds
from isochunk.errors import UsageError
from isochunk.host.files import read_toml


@dataclass(frozen=True, slots=True)
class Kind:
    """A Dask cluster class that has a name of its own."""

    path: str
    """Dotted path of the class."""
    install: str
    """What pip installs to have it."""


KINDS: Mapping[str, Kind] = {
    "local": Kind("distributed.LocalCluster", "isochunk"),
    "cuda": Kind("dask_cuda.LocalCUDACluster", "isochunk[cuda]"),
    "slurm": Kind("dask_jobqueue.SLURMCluster", "isochunk[jobqueue]"),
    "lsf": Kind("dask_jobqueue.LSFCluster", "isochunk[jobqueue]"),
    "pbs": Kind("dask_jobqueue.PBSCluster", "isochunk[jobqueue]"),
    "kubernetes": Kind("dask_kubernetes.operator.KubeCluster", "isochunk[kubernetes]"),
    "ec2": Kind("dask_cloudprovider.aws.EC2Cluster", "isochunk[aws]"),
    "fargate": Kind("dask_cloudprovider.aws.FargateCluster", "isochunk[aws]"),
    "gcp": Kind("dask_cloudprovider.gcp.GCPCluster", "isochunk[gcp]"),
}
"""The kinds of a cluster file; any other class is named by its path."""

WORDS = ("local", "cuda")
"""Kinds that need no file."""

KEYS = ("kind", "class", "workers", "wait_s", "options", "dask")
"""Keys of a cluster file."""


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A Dask cluster to start."""

    path: str
    """Dotted path of the Dask cluster class."""
    origin: str
    """Where this was said, for messages."""
    kind: str | None = None
    """Name of the class among :data:`KINDS`; None for any other."""
    workers: int | None = None
    """Worker processes to keep; None for the kind's own number: one, or one per GPU."""
    wait_s: float | None = None
    """How long a run waits while there is no worker at all; None for the usual time."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the class."""
    dask: Mapping[str, Any] = field(default_factory=dict)
    """Dask configuration while the cluster lives, by dotted key."""

    @property
    def install(self) -> str | None:
        """What pip installs to have the class; None if that is the user's own business."""
        return KINDS[self.kind].install if self.kind else None


def requested_cluster(options: RunOptions) -> ClusterSpec:
    """Return the cluster that a job asks for.

    Raises:
        UsageError: the file cannot be read, or a scheduler is given too.
    """
    if options.scheduler is not None and options.cluster not in WORDS:
        raise UsageError(
            f"scheduler is {options.scheduler} and cluster is {options.cluster}; a job runs on one "
            "of them, so drop the other"
        )
    return named_cluster(options.cluster, options.workers)


def named_cluster(cluster: str, workers: int | None = None) -> ClusterSpec:
    """Return the cluster of a word or a file.

    Args:
        cluster: ``local``, ``cuda`` or the path of a TOML file.
        workers: how many, whatever the file says.

    Raises:
        UsageError: the file cannot be read.
    """
    if cluster in WORDS:
        spec = ClusterSpec(KINDS[cluster].path, f"--cluster {cluster}", cluster)
    else:
        spec = read_cluster_file(cluster)
    return replace(spec, workers=workers or spec.workers)


def read_cluster_file(path: str) -> ClusterSpec:
    """Read a cluster file.

    Raises:
        UsageError: it is missing, is not TOML, or a key or value is not what it should be.
    """
    if not Path(path).is_file():
        files = f"; {path} needs a file that says kind = {path!r}" if path in KINDS else ""
        raise UsageError(
            f"cluster is {path!r}, which is no file; wanted is {' or '.join(WORDS)}, or a TOML "
            f"file as in deploy/{files}"
        )
    table = read_toml(path)
    unknown = sorted(set(table) - set(KEYS))
    if unknown:
        raise UsageError(
            f"{path} has the unknown {', '.join(unknown)}; known are {', '.join(KEYS)}, and "
            "arguments of the cluster class stand under [options]"
        )
    check_types(path, table)
    kind, dotted = named_class(path, table)
    return ClusterSpec(
        path=dotted,
        origin=path,
        kind=kind,
        workers=table.get("workers"),
        wait_s=read_seconds(table["wait_s"], f"wait_s of {path}") if "wait_s" in table else None,
        options=table.get("options", {}),
        dask=flat(table.get("dask", {})),
    )


def check_types(path: str, table: Mapping[str, Any]) -> None:
    """Check the values of a cluster file.

    Raises:
        UsageError: a value is of another type.
    """
    wanted: Mapping[str, tuple[type | tuple[type, ...], str]] = {
        "kind": (str, "text"),
        "class": (str, "text"),
        "workers": (int, "a whole number, at least 1"),
        "wait_s": ((int, float), "seconds, more than 0"),
        "options": (dict, "a table, [options]"),
        "dask": (dict, "a table, [dask]"),
    }
    for key, value in table.items():
        types, words = wanted[key]
        few = key == "workers" and isinstance(value, int) and value < 1
        if isinstance(value, bool) or not isinstance(value, types) or few:
            raise UsageError(f"{key} of {path} is {value!r}; it must be {words}")


def named_class(path: str, table: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the kind and the dotted path of the class that a cluster file names.

    Raises:
        UsageError: it names none, two, or one that is not known.
    """
    kind, dotted = table.get("kind"), table.get("class")
    if (kind is None) == (dotted is None):
        got = "both kind and class" if kind else "neither kind nor class"
        raise UsageError(
            f"{path} has {got}; say kind = one of {', '.join(KINDS)}, or class = the dotted path "
            "of a Dask cluster class"
        )
    if kind is None:
        return next((k for k, known in KINDS.items() if known.path == dotted), None), str(dotted)
    if kind not in KINDS:
        raise UsageError(
            f"kind of {path} is {kind!r}; choose one of {', '.join(KINDS)}, or say class = the "
            "dotted path of a Dask cluster class"
        )
    return kind, KINDS[kind].path


def flat(table: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Write nested tables as dotted keys, since dask replaces whole tables."""
    keys: dict[str, Any] = {}
    for key, value in table.items():
        keys |= flat(value, f"{head}{key}.") if isinstance(value, dict) else {head + key: value}
    return keys

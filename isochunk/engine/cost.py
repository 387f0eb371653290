"""What a whole job takes and costs: from the plan, from a calibration, and from prices.

::

    worker_s  = max(compute_s, (read_s + compute_s + write_s) / depth)     of the blocks measured
    job       = worker_s * voxels of the job / voxels measured
    wall      = job / workers
    machines  = job / 3600 / workers a machine * price of its hour
    requests  = number / 1000 * price of a thousand
    stored    = voxel bytes * share that the encoding makes of them, measured or assumed, in GiB
    moved     = GiB * price of moving one;  kept = GiB stored * price of one for a month

The first line is how a worker goes about it: one block computes at a time, ``depth`` blocks are
read, computed or written at once, and whichever of the two is slower sets the pace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from isochunk.core.codec import from_json
from isochunk.core.geometry import ceil_div
from isochunk.core.limits import RECORD_S
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.errors import UsageError
from isochunk.host.files import read_toml
from isochunk.planning.layout import pooling_between
from isochunk.planning.plan import Plan
from isochunk.storage.url import parse_url

PRICES = Path(__file__).with_name("prices.toml")
"""Example prices, used where the user gives none."""

GIB = 1 << 30

AxisIntervals: TypeAlias = Sequence[Sequence[tuple[int, int]]]
"""What blocks read along z, y and x: the boxes are the product of the three."""


def check_price(name: str, price: float) -> None:
    """Check a price.

    Raises:
        UsageError: it is negative, or no number.
    """
    if not 0 <= price < math.inf:
        raise UsageError(f"{name} is {price}; a price must be 0 or more, and finite")


@dataclass(frozen=True, slots=True)
class Service:
    """Prices of an object store."""

    get_per_1000: float
    """A thousand reads."""
    put_per_1000: float
    """A thousand writes."""
    gib_month: float
    """One GiB stored for a month."""
    gib_moved: float
    """One GiB between bucket and workers, either way; 0 within one region."""

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            UsageError: one is negative, or no number.
        """
        for name in ("get_per_1000", "put_per_1000", "gib_month", "gib_moved"):
            check_price(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Machine:
    """Price of what workers run on."""

    name: str
    """What :attr:`Prices.machine` calls it."""
    hour: float
    """One machine for one hour."""
    workers: int
    """Worker processes on one machine."""

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            UsageError: the price is negative, or there is no worker.
        """
        check_price(f"hour of machine {self.name!r}", self.hour)
        if self.workers < 1:
            raise UsageError(
                f"workers of machine {self.name!r} is {self.workers}; it must be at least 1"
            )


@dataclass(frozen=True, slots=True)
class Prices:
    """A price list."""

    currency: str
    """What all prices are in."""
    as_of: str
    """When they held."""
    machine: str
    """Which machine workers run on."""
    s3: Service
    """S3 and compatible servers."""
    gs: Service
    """Google Cloud Storage."""
    machines: tuple[Machine, ...]
    """Machines to choose from."""

    def __post_init__(self) -> None:
        """Check the choice.

        Raises:
            UsageError: there is no such machine.
        """
        names = [m.name for m in self.machines]
        if self.machine not in names:
            raise UsageError(f"machine is {self.machine!r}; choose one of {', '.join(names)}")

    def chosen(self) -> Machine:
        """Return the machine that workers run on."""
        return next(m for m in self.machines if m.name == self.machine)

    def service(self, volume: VolumeSpec) -> Service:
        """Return the prices of where a volume is stored; all 0 for files and http(s)."""
        return {"s3": self.s3, "gs": self.gs}.get(parse_url(volume.url).scheme, FREE)


FREE = Service(0.0, 0.0, 0.0, 0.0)


def read_prices(path: str | None = None) -> Prices:
    """Read a price list.

    Args:
        path: a TOML file; None for ``isochunk/prices.toml``, whose prices are examples.

    Raises:
        UsageError: it cannot be read, or a key is missing, unknown or wrong.
    """
    file = path or str(PRICES)
    table = read_toml(file)
    try:
        return from_json(Prices, table)
    except UsageError as error:
        raise UsageError(f"prices {file}: {error}; {PRICES.name} of isochunk shows how") from error


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of a whole job, as if nothing were cached and nothing background."""

    source_gets: int
    """Reads of source objects, halos included."""
    target_gets: int
    """Reads of target objects, for coarse levels and for checksums of lossy encodings."""
    puts: int
    """Writes of target objects."""


def traffic(plan: Plan) -> Traffic:
    """Count the requests of a plan.

    A chunk is one GET. A shard of which all chunks are wanted is one as well; of another, first its
    index is read (two GETs in precomputed, one in zarr), then its chunks: at most a GET each, fewer
    where neighbours lie side by side in the shard.
    """
    levels = plan.target.levels
    source = plan.source.levels[0]
    back = 0
    for number, stage in enumerate(plan.stages):
        intervals = block_intervals(plan, number)
        if stage.reads is not None:
            back += gets(levels[stage.reads], plan.target.format, intervals)
        if plan.target.lossy:
            written = levels[stage.writes[0]]
            back += gets(written, plan.target.format, grid_intervals(written, stage.block))
    return Traffic(
        source_gets=gets(source, plan.source.format, plan.source_intervals()),
        target_gets=back,
        puts=plan.objects_written(),
    )


def grid_intervals(level: LevelSpec, block: Sequence[int]) -> AxisIntervals:
    """Return where blocks start and end along each axis of a level."""
    box = level.box
    return [
        [(start, min(start + b, hi)) for start in range(lo, hi, b)]
        for lo, hi, b in zip(box.lo, box.hi, block, strict=True)
    ]


def block_intervals(plan: Plan, number: int) -> AxisIntervals:
    """Return what the blocks of a stage read along each axis, of the level that the stage reads."""
    stage, levels = plan.stages[number], plan.target.levels
    if stage.reads is None:
        return plan.source_intervals()
    fine, coarse = levels[stage.reads], levels[stage.reads + 1]
    by = pooling_between(fine, coarse)
    return [
        [(lo * p, min(hi * p, end)) for lo, hi in axis]
        for axis, p, end in zip(grid_intervals(coarse, stage.block), by, fine.box.hi, strict=True)
    ]


def gets(level: LevelSpec, format: str, intervals: AxisIntervals) -> int:
    """Return the GETs that read the boxes ``intervals``, each by itself; see :func:`traffic`."""
    index = 0 if level.shard is None else 2 if format == "precomputed" else 1
    chunks = shards = full = inside = 1
    for axis, along in enumerate(intervals):
        start, n = level.box.lo[axis], level.box.shape[axis]
        chunk, shard = level.chunk[axis], level.object_shape[axis]
        clipped = [(max(lo - start, 0), min(hi - start, n)) for lo, hi in along]
        chunks *= sum(ceil_div(hi, chunk) - lo // chunk for lo, hi in clipped)
        shards *= sum(ceil_div(hi, shard) - lo // shard for lo, hi in clipped)
        # A shard that the volume's end cuts is whole in precomputed; zarr's has chunks beyond.
        end = n if format == "precomputed" else math.inf
        whole = [
            range(ceil_div(lo, shard), ceil_div(hi, shard) if hi == end else hi // shard)
            for lo, hi in clipped
        ]
        full *= sum(map(len, whole))
        lengths = (min(shard, n - i * shard) for numbers in whole for i in numbers)
        inside *= sum(ceil_div(length, chunk) for length in lengths)
    return full + index * (shards - full) + chunks - inside if index else chunks


@dataclass(frozen=True, slots=True)
class Calibration:
    """What blocks took that were really read, computed and written, the last into memory."""

    blocks: int
    """Blocks measured."""
    voxels: int
    """Their target voxels at full resolution."""
    read_voxels: int
    """Of these, in blocks that read the source: the mask leaves out the others."""
    stored_voxels: int
    """Of these, in blocks that are not all background."""
    workers: int
    """Worker processes."""
    depth: int
    """Blocks in flight in one worker."""
    read_s: float
    """Seconds reading, summed over blocks."""
    compute_s: float
    """Seconds computing."""
    write_s: float
    """Seconds encoding and writing into memory."""
    elapsed_s: float
    """Seconds from the first block to the last, the pipeline's filling and emptying included."""
    encoded_share: float | None = None
    """Bytes stored over voxel bytes, of blocks that are not all background; None if all are."""

    @property
    def worker_s(self) -> float:
        """Seconds that one worker would take for these blocks with its pipeline full."""
        together = (self.read_s + self.compute_s + self.write_s) / self.depth
        return max(self.compute_s, together)

    @property
    def voxels_per_s(self) -> float:
        """Target voxels that one worker makes in a second."""
        return self.voxels / self.worker_s

    def summary(self) -> dict[str, Any]:
        """Return the JSON object ``calibration`` of ``isochunk plan``."""
        return {
            "blocks": self.blocks,
            "voxels": self.voxels,
            "read_share": rounded(self.read_voxels / self.voxels),
            "stored_share": rounded(self.stored_voxels / self.voxels),
            "encoded_share": None if self.encoded_share is None else rounded(self.encoded_share),
            "stages_s": {
                "read": rounded(self.read_s),
                "compute": rounded(self.compute_s),
                "write": rounded(self.write_s),
            },
            "blocks_in_flight": self.depth,
            "worker_s": rounded(self.worker_s),
            "elapsed_s": rounded(self.elapsed_s),
            "workers": self.workers,
            "voxels_per_s_per_worker": rounded(self.voxels_per_s),
            "voxels_per_s": rounded(self.voxels_per_s * self.workers),
            "written_to": "memory",
        }


@dataclass(frozen=True, slots=True)
class BillItem:
    """One line of a bill."""

    item: str
    """What for."""
    quantity: float
    """How many units."""
    unit: str
    """Of what."""
    price: float
    """Price of ``per`` units."""
    per: int = 1
    """Units that the price is for."""

    @property
    def cost(self) -> float:
        """Price of the quantity."""
        return self.quantity / self.per * self.price


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a whole job takes and costs."""

    currency: str
    """What prices are in."""
    as_of: str
    """When they held."""
    workers: int
    """Worker processes that the wall time is for."""
    worker_hours: float
    """Hours of one worker (one GPU); all workers together take this."""
    items: tuple[BillItem, ...]
    """What is paid once."""
    stored: BillItem
    """What is paid every month."""

    @property
    def wall_s(self) -> float:
        """Seconds that the job takes with all workers."""
        return self.worker_hours * 3600 / self.workers

    @property
    def total(self) -> float:
        """What is paid once, altogether."""
        return sum(item.cost for item in self.items)

    def summary(self) -> dict[str, Any]:
        """Return the JSON object ``cost`` of ``isochunk plan``."""
        return {
            "currency": self.currency,
            "prices_as_of": self.as_of,
            "workers": self.workers,
            "worker_hours": rounded(self.worker_hours),
            "wall_s": rounded(self.wall_s),
            "rows": [item_json(item) for item in self.items],
            "total": rounded(self.total),
            "storage": [item_json(self.stored)],
        }


def estimate(plan: Plan, measured: Calibration, prices: Prices) -> Estimate:
    """Estimate what a whole job takes and costs; formulas at the head of this module.

    Blocks that the mask leaves out or that are all background make no requests, and take no room:
    their share among those measured is taken as that of the whole volume.
    """
    counted = traffic(plan)
    job_s = measured.worker_s * plan.target.box.size / measured.voxels
    read = measured.read_voxels / measured.voxels
    stored = measured.stored_voxels / measured.voxels
    source, target = prices.service(plan.source), prices.service(plan.target)
    machine = prices.chosen()
    # The record is stored at most once in RECORD_S, and read again when it is folded.
    records = min(plan.total_blocks, math.ceil(job_s / measured.workers / RECORD_S))
    encoded = plan.encoded_share if measured.encoded_share is None else measured.encoded_share
    written_gib = plan.bytes_written() * encoded * stored / GIB
    items = (
        BillItem(machine.name, job_s / 3600 / machine.workers, "machine hours", machine.hour),
        BillItem("source", round(counted.source_gets * read), "GETs", source.get_per_1000, 1000),
        BillItem("target", round(counted.target_gets * stored), "GETs", target.get_per_1000, 1000),
        BillItem("target", round(counted.puts * stored), "PUTs", target.put_per_1000, 1000),
        BillItem("record", records, "GETs", target.get_per_1000, 1000),
        BillItem("record", records, "PUTs", target.put_per_1000, 1000),
        BillItem("source", plan.read_bytes()[0] * read / GIB, "GiB in", source.gib_moved),
        BillItem("target", written_gib, "GiB out", target.gib_moved),
    )
    return Estimate(
        currency=prices.currency,
        as_of=prices.as_of,
        workers=measured.workers,
        worker_hours=job_s / 3600,
        items=items,
        stored=BillItem("target", written_gib, "GiB months", target.gib_month),
    )


def month_of(plan: Plan, prices: Prices) -> dict[str, Any]:
    """Say as JSON what a target costs a month, as if none of it were background.

    Its size is assumed; an :class:`Estimate` has it as measured.
    """
    cost = plan.bytes_stored() / GIB * prices.service(plan.target).gib_month
    said = {"currency": prices.currency, "prices_as_of": prices.as_of}
    return {"cost": rounded(cost), **said}


def item_json(item: BillItem) -> dict[str, Any]:
    """Return an item as JSON, with its factors."""
    return {
        "item": item.item,
        "quantity": rounded(item.quantity),
        "unit": item.unit,
        "price": item.price,
        "per": item.per,
        "cost": rounded(item.cost),
    }


def rounded(value: float) -> float:
    """Keep the digits that mean something; counts stay whole."""
    return value if isinstance(value, int) else float(f"{value:.6g}")

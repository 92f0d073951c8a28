"""What grows with a corpus beyond the work of its encoders: driver, manifest, files, nodes.

One driver feeds all workers of a cluster, one process holds the manifest, and one folder the
shards, so each of these ends somewhere. The constants are measured; docs/scale.md shows them beside
the newest measurements and what follows from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DRIVER_SECONDS_PER_SHARD = 0.0059
"""Processor time of the driver (`benchmarks/dispatch.py`)."""
DRIVER_BYTES_PER_SHARD = 10_500.0
"""5.9 kB of Ray Data's (`benchmarks/dispatch.py`) and the shard's marker in memory."""
PREPARE_BYTES_PER_ROW = 111.0
"""Memory of `prepare` (`benchmarks/prepare.py`)."""
AUDIO_BYTES_PER_SECOND = 32_000.0
"""16 kHz, 16 bits, one channel."""
FILES_PER_SHARD = 2
FILES_PER_FOLDER = 1_000_000
"""What tools that list a folder still bear."""
RAY_NODES = 2_000
"""Ray's release tests start clusters of 2,000 nodes ("Scalability Envelope")."""


@dataclass(frozen=True)
class Size:
    """A corpus and the cluster that encodes it.

    Attributes:
        workers: encoder processes at the same time.
        worker_rate: seconds of audio that one encodes in a second.
        stored_bytes: per second of audio.
        clip_seconds: mean length of a clip.
    """

    hours: float
    workers: int
    nodes: int
    worker_rate: float
    stored_bytes: float
    shard_seconds: float
    clip_seconds: float

    @property
    def audio_seconds(self) -> float:
        return 3600 * self.hours

    @property
    def clips(self) -> float:
        return self.audio_seconds / self.clip_seconds

    @property
    def shards(self) -> float:
        return self.audio_seconds / self.shard_seconds

    @property
    def working_seconds(self) -> float:
        """Until the encoders are done, if they never wait."""
        return self.audio_seconds / (self.workers * self.worker_rate)

    @property
    def feeding_seconds(self) -> float:
        """Until the driver has handed out every shard and taken its marker."""
        return self.shards * DRIVER_SECONDS_PER_SHARD

    @property
    def encoding_seconds(self) -> float:
        """The slower one of both, which overlap."""
        return max(self.working_seconds, self.feeding_seconds)

    @property
    def read_bytes_per_second(self) -> float:
        return self.audio_seconds * AUDIO_BYTES_PER_SECOND / self.encoding_seconds

    @property
    def written_bytes_per_second(self) -> float:
        return self.audio_seconds * self.stored_bytes / self.encoding_seconds


@dataclass(frozen=True)
class Strain:
    """Something that a single process, folder or disk has to bear.

    Attributes:
        amount, bound: in `unit`.
        hours: of audio at which the amount reaches the bound, on the same cluster.
    """

    what: str
    amount: float
    bound: float
    unit: str
    hours: float

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "beyond": self.amount > self.bound}


def strains(size: Size, memory_bytes: float, disk_bytes: float) -> Sequence[Strain]:
    """What a corpus of this size strains, the first to break first.

    Args:
        memory_bytes: of the node of the driver.
        disk_bytes: of a node that trains on a local copy of the store.
    """

    def strain(what: str, amount: float, bound: float, unit: str) -> Strain:
        return Strain(what, amount, bound, unit, size.hours * bound / amount)

    gb = 1e9
    found = [
        strain(
            "manifest in the memory of prepare",
            size.clips * PREPARE_BYTES_PER_ROW / gb,
            memory_bytes / gb,
            "GB",
        ),
        strain(
            "shards in the memory of the driver",
            size.shards * DRIVER_BYTES_PER_SHARD / gb,
            memory_bytes / gb,
            "GB",
        ),
        strain(
            "feature store on the disk of a node that trains",
            size.audio_seconds * size.stored_bytes / gb,
            disk_bytes / gb,
            "GB",
        ),
        strain(
            "files in the folder of the shards",
            size.shards * FILES_PER_SHARD,
            FILES_PER_FOLDER,
            "files",
        ),
    ]
    return sorted(found, key=lambda each: each.hours)


def idle_share(size: Size) -> float:
    """Share of the encoders' time in which they wait for the driver; it depends on no corpus."""
    return 1 - size.working_seconds / size.encoding_seconds


def most_workers(size: Size) -> float:
    """Encoder processes that one driver keeps busy."""
    return size.shard_seconds / (DRIVER_SECONDS_PER_SHARD * size.worker_rate)


def parts(size: Size, memory_bytes: float, disk_bytes: float) -> int:
    """Jobs of a part of the corpus each, so that none of them strains anything."""
    by_strain = max(each.amount / each.bound for each in strains(size, memory_bytes, disk_bytes))
    by_driver = size.workers / most_workers(size)
    return max(1, -int(-max(by_strain, by_driver, size.nodes / RAY_NODES) // 1))


def extrapolated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float]]:
    """What the smaller sizes say of each larger one.

    Args:
        points: size and cost, sizes ascending.

    Returns:
        size, forecast and cost of every point from the third on, by the line through the first
        two; of two points, the second one in proportion to the first.
    """
    if len(points) == 2:
        (one, cost), (other, truth) = points
        return [(other, cost * other / one, truth)]
    if len(points) < 2:
        return []
    (one, cost), (other, more) = points[:2]
    slope = (more - cost) / (other - one)
    return [(size, cost + slope * (size - one), truth) for size, truth in points[2:]]

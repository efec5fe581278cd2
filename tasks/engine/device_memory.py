"""In a GPU's memory or in the host's: where a worker's share of the binned features goes.

In the GPU's memory XGBoost keeps one packed bin for each value (its ELLPACK pages). Where that
does not fit, the pages are kept in the host's memory and copied in every round.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import psutil

from tasks.engine.errors import RunError
from tasks.engine.frames import device_memory
from tasks.engine.memory import ENDED, FILLED, Room
from tasks.engine.need import Need
from tasks.engine.workers import megabytes

# Per value of a batch: cuDF's columns of 8 bytes at most, what they are decompressed from, float32
# features, and the same of the one that is read ahead.
BATCH_BYTES = 40
# Histograms of a level of the tree and those above it, and room to grow; XGBoost keeps so many.
LEVEL_NODES = 3
KEPT_NODES = 4_096
# XGBoost holds two pages at once of the train rows and two of the valid rows, each of about this
# share of what a training may fill. A page that is the only one it keeps on the GPU.
PAGE_SHARE = 1 / 32
PAGES_HELD = 4
LEAST_PAGES = 4
# What XGBoost takes of the host while a page is written there.
HOST_SHARE = 0.9


@dataclass(frozen=True)
class DeviceNeed(Need):
    """Bytes of a GPU that a share of the rows takes: estimated from XGBoost's source."""

    @property
    def bits(self) -> int:
        """Of one value. With missing values in any of the features it is a bin among those of all
        features; else among its own feature's.
        """
        symbols = self.bins * self.features + 1 if self.missing else self.bins
        return max(1, math.ceil(math.log2(symbols)))

    @property
    def matrix(self) -> int:
        return self.rows * self.features * self.bits // 8

    @property
    def batch(self) -> int:
        return self.largest * self.features * BATCH_BYTES


@dataclass(frozen=True)
class DeviceRoom(Room):
    """What a worker has of its GPU: `limit` bytes, and `host` bytes (None: all that is free)."""

    host: int | None = None

    setting: ClassVar[str] = "cluster.gpu_memory_limit"
    beyond: ClassVar[str] = "the host's memory"
    need: ClassVar[type[Need]] = DeviceNeed

    @classmethod
    def of(cls, room: Room, gpu_memory: int | None) -> "DeviceRoom":
        """Of a worker with so much room on its host, and `gpu_memory` bytes of its GPU at most."""
        _, total = device_memory()
        return cls(
            limit=min(total, gpu_memory or total),
            scratch=room.scratch,
            sharing=room.sharing,
            worker=room.worker,
            host=room.limit,
        )

    def held(self) -> int:
        """Of the GPU, by whomever: a worker that trained before keeps nothing, others may."""
        free, total = device_memory()
        return total - free

    def free(self, folder: str) -> int:
        available = int(psutil.virtual_memory().available) // self.sharing
        if self.host is None:
            return available
        mine = int(HOST_SHARE * self.host) - int(psutil.Process().memory_info().rss)
        return max(0, min(available, mine))

    def check_memory(self, need: Need, held: int) -> None:
        """Raises RunError where bins in the host's memory don't help."""
        assert self.limit is not None
        taken = max(need.state, need.batch) + int(PAGES_HELD * PAGE_SHARE * self.limit)
        if held + taken <= ENDED * self.limit:
            return
        raise RunError(
            f"A share of {need.rows:,} rows takes about {megabytes(taken)} of the GPU of the "
            f"worker {self.worker} for batches, gradients, histograms and four pages, even with "
            f"its bins in the host's memory. {megabytes(held)} of the GPU are taken already, and a "
            f"training may fill {megabytes(self.limit)} (cluster.gpu_memory_limit, or all of it). "
            "Spread the rows over more GPUs, or use smaller row groups (data.row_group_rows)."
        )

    def check_disk(self, need: Need, free: int) -> None:
        """Raises RunError where the pages don't fit `free` bytes of the host's memory."""
        if need.pages <= free:
            return
        raise RunError(
            f"The binned features don't fit the GPU of the worker {self.worker} (or "
            "cluster.external_memory is 'always'), and not the host's memory either: they take "
            f"about {megabytes(need.pages)}, and {megabytes(free)} are free. Give workers more "
            "memory (cluster.memory_limit), or spread the rows over more GPUs."
        )

    def cache(self, taken: int) -> int:
        """Half of what is free: batches go before there are gradients."""
        assert self.limit is not None
        return max(0, int(FILLED * self.limit) - taken) // 2

    def cached_nodes(self, all_bins: int) -> int | None:
        return None

    def nodes(self, all_bins: int, tree: int) -> int:
        return LEVEL_NODES * min(KEPT_NODES, (tree + 1) // 2 * 2)

    def orders_rows(self, need: Need) -> bool:
        """Never: where neighbours share their bins, a GPU's threads wait for each other."""
        return False

    def check_page(self, need: Need, free: int) -> None:
        """The host's memory was looked at before the first page: XGBoost takes it at once."""

    def page_rows(self, need: Need) -> int:
        """Every batch is a page: XGBoost puts them together."""
        return max(1, need.largest)

    def page_bytes(self, need: Need) -> int | None:
        """XGBoost's own size is of the whole GPU, whatever a training may fill."""
        assert self.limit is not None
        return max(1, min(int(PAGE_SHARE * self.limit), need.matrix // LEAST_PAGES))

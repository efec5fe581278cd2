"""In memory or on disk: where a worker's share of the binned features goes, decided from numbers.

In memory XGBoost keeps every value's bin twice, by row and by column. On disk (its external
memory) the pages are read in every round and the workers keep what is one number
per row. The model's bytes are the same, so each training takes what fits.
"""

import ctypes
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import clear_frames
from typing import Any, ClassVar

import numpy as np
import psutil
import pyarrow as pa
from xgboost import collective

from tasks.engine.batches import Float32
from tasks.engine.dataset import Frozen
from tasks.engine.errors import RunError
from tasks.engine.frames import forget_footers
from tasks.engine.matrix import Pages
from tasks.engine.need import (
    CACHED_NODES,
    HISTOGRAM_BYTES,
    HISTOGRAM_SHARE,
    NODES_AT_ONCE,
    ExternalMemory,
    Need,
    tree_nodes,
)
from tasks.engine.spec import BoostSpec
from tasks.engine.workers import megabytes

# Of the memory limit: Dask's nanny ends a worker at 0.95, and the estimate leaves a little.
FILLED = 0.9
ENDED = 0.95
# What batches may be kept in between XGBoost's reads, where there is room: a share of the limit,
# or without a limit a plain amount. Reading and scaling them again takes an eighth of the time that
# XGBoost spends on finding their bins, so memory is worth more.
CACHE_SHARE = 1 / 64
CACHE_BYTES = 256 << 20
# What is kept free of a disk that others write to as well, and pages that are not written yet.
SPARE_BYTES = 32 << 20
PAGE_ROWS = 131_072
ORDERED_ROWS = 131_072
LEAST_PAGE_ROWS = 4_096
PAGE_SHARE = 1 / 16
PAGES_AHEAD = 4
PAGES_HELD = 4
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
APART_BYTES = 32 << 20
MORE_DISK = (
    "Make room there, put BOOSTLINE_HOME on a larger disk (or the --local-directory of workers "
    "that were started elsewhere), or give workers more memory (cluster.memory_limit)."
)
MORE_MEMORY = (
    "Give workers more memory (cluster.memory_limit), or spread the rows over more of them "
    "(cluster.workers)."
)


class MatrixOptions(Frozen):
    """What the driver knows: the setting, the share of the rows that are train or valid rows, and
    whether any feature has missing values (None: as the sample has). `after_loss` when a worker
    was ended at its memory limit before. `gpu_memory` are bytes of a GPU, None for all of them.
    """

    external: ExternalMemory = "auto"
    used: float = 1.0
    missing: bool | None = None
    after_loss: bool = False
    gpu_memory: int | None = None


AUTO = MatrixOptions()


@dataclass(frozen=True)
class Room:
    """What a worker has. `limit` in bytes is None where there is none; `scratch` is a folder that
    `sharing` workers of this training write to at most.
    """

    limit: int | None = None
    scratch: str | None = None
    sharing: int = 1
    worker: str = "here"

    # how the decision is told: whose limit it is, and where bins go that don't fit
    setting: ClassVar[str] = "cluster.memory_limit"
    beyond: ClassVar[str] = "disk"
    need: ClassVar[type[Need]] = Need

    def held(self) -> int:
        """Bytes that are taken already."""
        return int(psutil.Process().memory_info().rss)

    def free(self, folder: str) -> int:
        """Bytes where bins go that don't fit."""
        return shutil.disk_usage(folder).free

    def prefers_disk(self, mode: ExternalMemory, need: Need, held: int) -> bool:
        """Whether bins go to disk, where `held` bytes are taken before the matrix is built."""
        if mode != "auto" or self.limit is None:
            return mode == "always"
        return held + need.in_memory > FILLED * self.limit

    def check_memory(self, need: Need, held: int) -> None:
        """Raises RunError where bins on disk don't help."""
        pages = math.ceil(need.rows / self.page_rows(need))
        taken = need.state + PAGES_HELD * self._page(need) + pages * need.page_blocks
        if self.limit is None or held + taken <= ENDED * self.limit:
            return
        deep = held + taken - need.histograms <= ENDED * self.limit
        raise RunError(
            f"A share of {need.rows:,} rows × {need.features:,} features takes about "
            f"{megabytes(taken)} for labels, margins, gradients and histograms, even with its bins "
            f"on disk, and the worker {self.worker} holds {megabytes(held)} already: its memory "
            f"limit is {megabytes(self.limit)} (cluster.memory_limit). "
            f"{_smaller_trees(need) if deep else MORE_MEMORY}"
        )

    def check_disk(self, need: Need, free: int) -> None:
        """Raises RunError where the pages don't fit the `free` bytes of the scratch folder."""
        if need.pages * self.sharing + SPARE_BYTES <= free:
            return
        of = f" of each of {self.sharing} workers" if self.sharing > 1 else ""
        raise RunError(
            f"The binned features{of} go to disk, as they don't fit the workers' memory or "
            "cluster.external_memory is 'always'. They take about "
            f"{megabytes(need.pages * self.sharing)}, but {self.scratch} has "
            f"{megabytes(free)} free. {MORE_DISK}"
        )

    def page_rows(self, need: Need) -> int:
        """XGBoost holds a few pages at once, and something of each: with fewer rows the one takes
        less memory, with more the other.
        """
        if self.limit is None:
            return PAGE_ROWS
        least = math.sqrt(need.rows * need.page_blocks / (PAGES_HELD * need.page_row))
        largest = PAGE_SHARE * self.limit / need.page_row
        return max(LEAST_PAGE_ROWS, int(min(PAGE_ROWS, least, largest)))

    def _page(self, need: Need) -> int:
        return int(self.page_rows(need) * need.page_row)

    def page_bytes(self, need: Need) -> int | None:
        """To which XGBoost puts pages together, which it does on a GPU alone."""
        return None

    def check_page(self, need: Need, free: int) -> None:
        """Raises RunError where the disk fills up: XGBoost ends the process when a write fails."""
        if free < PAGES_AHEAD * self._page(need) * self.sharing + SPARE_BYTES:
            raise RunError(
                f"The disk filled up while the binned features were written: {self.scratch} has "
                f"{megabytes(free)} free. {MORE_DISK}"
            )

    def cache(self, taken: int) -> int:
        """Bytes for batches between XGBoost's reads, beside `taken` ones."""
        if self.limit is None:
            return CACHE_BYTES
        return max(0, min(int(CACHE_SHARE * self.limit), int(FILLED * self.limit) - taken))

    def cached_nodes(self, all_bins: int) -> int | None:
        """Of how many nodes XGBoost is to keep histograms; None leaves it to XGBoost."""
        if self.limit is None:
            return CACHED_NODES
        fit = HISTOGRAM_SHARE * self.limit / (all_bins * HISTOGRAM_BYTES)
        return min(CACHED_NODES, int(fit) + 1)

    def nodes(self, all_bins: int, tree: int) -> int:
        """Of how many nodes it keeps them, where a tree has `tree` of them."""
        cached = self.cached_nodes(all_bins) or CACHED_NODES
        return min(tree, max(cached, min(NODES_AT_ONCE, (tree + 1) // 2)))

    def orders_rows(self, need: Need) -> bool:
        """Whether train rows are sorted (`row_order`): fewer lie in the processor's caches."""
        return need.rows >= ORDERED_ROWS


BOUNDLESS = Room()


@dataclass(frozen=True)
class Share:
    """A worker's part and the room for it; `rows` and `largest` as in `Need`."""

    rows: int = 0
    largest: int = 0
    options: MatrixOptions = AUTO
    room: Room = BOUNDLESS

    def complete(self, spec: BoostSpec) -> bool:
        """Whether XGBoost on a CPU needs no look at the values to know that none is missing.

        A category that no train row has is missing where a valid row has it.
        """
        known = self.options.missing is False and "c" not in spec.feature_types
        return known and spec.device == "cpu"

    def need(self, spec: BoostSpec, sample: Float32, reference: Any) -> Need:
        """`reference` is a matrix with the bins of `sample`. Every category has a bin of its own,
        so they may be more than the spec's `max_bin`.
        """
        missing = self.options.missing
        ends, _ = reference.get_quantile_cut()  # of a numeric feature its least value as well
        categories = np.diff(ends)[[kind == "c" for kind in spec.feature_types]]
        return self._need(
            spec,
            bins=max(spec.max_bin, int(categories.max(initial=0))),
            all_bins=int(ends[-1]),
            missing=bool(np.isnan(sample).any()) if missing is None else missing,
        )

    def expected_need(self, spec: BoostSpec) -> Need:
        """As far as it is known without looking at any row."""
        return self._need(
            spec,
            bins=spec.max_bin,
            all_bins=spec.max_bin * len(spec.feature_names),
            missing=bool(self.options.missing),
        )

    def _need(self, spec: BoostSpec, *, bins: int, all_bins: int, missing: bool) -> Need:
        rows = int(self.rows * self.options.used)
        tree = tree_nodes(spec.depth, spec.leaves, rows)
        return self.room.need(
            rows=rows,
            largest=self.largest,
            features=len(spec.feature_names),
            bins=bins,
            missing=missing,
            own_objective=spec.own_objective,
            all_bins=all_bins,
            tree=tree,
            nodes=self.room.nodes(all_bins, tree),
        )


@dataclass(frozen=True)
class Place:
    """Where the matrices go: pages on disk, or None for memory; `cache` bytes for batches; of how
    many `nodes` histograms are kept, None for as many as XGBoost likes.
    """

    pages: Pages | None
    cache: int
    nodes: int | None


@contextmanager
def place_of(share: Share, need: Need, tell: Callable[[str], None]) -> Iterator[Place]:
    """Decides, inside the group: when one member's share does not fit, all use the disk, and all
    keep as many histograms.

    So the group takes one path through XGBoost, and what is said of the run is one thing. `tell`
    gets a sentence from a member whose own share goes to disk. The folder is removed at the end.

    Raises:
        RunError: neither memory nor disk have room.
    """
    room, mode = share.room, share.options.external
    held = room.held()
    own = room.prefers_disk(mode, need, held)
    cached = room.cached_nodes(need.all_bins)
    nodes = None if cached is None else _least(cached)
    if not _any_member(own):
        batches = room.cache(held + need.matrix + need.batch)
        yield Place(None, batches, nodes)
        return
    room.check_memory(need, held)
    with TemporaryDirectory(
        prefix="matrix-", dir=room.scratch, ignore_cleanup_errors=True
    ) as folder:
        room.check_disk(need, room.free(folder))
        if own:
            tell(_reason(share, need, held))

        def check() -> None:
            room.check_page(need, room.free(folder))

        pages = Pages(Path(folder), room.page_rows(need), check, room.page_bytes(need))
        # after a loss the estimate is known to be too low
        after_loss = share.options.after_loss
        batches = 0 if after_loss else room.cache(held + need.batch + need.state)
        try:
            with _large_blocks_apart():
                yield Place(pages, batches, nodes)
        except BaseException as error:
            # whose traceback holds the matrices: XGBoost complains where pages went before them
            clear_frames(error.__traceback__)
            raise


@contextmanager
def _large_blocks_apart() -> Iterator[None]:
    """Where memory is short: XGBoost's histograms grow level by level, and a heap keeps the place
    of all that they leave. For workers, whose blocks lie in a heap up to a size of their own.
    """
    usual = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if usual is None or set_option is None:
        yield
        return
    set_option(M_MMAP_THRESHOLD, APART_BYTES)
    try:
        yield
    finally:
        set_option(M_MMAP_THRESHOLD, int(usual))


def give_back() -> None:
    """Freed memory goes back to the system, by the page: boosting takes none of it in such pieces.

    Arrow keeps some 100 MB of what it read, and workers keep what they freed; without glibc that
    stays.
    """
    forget_footers()
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _smaller_trees(need: Need) -> str:
    return (
        f"{megabytes(need.histograms)} are histograms of {need.nodes} nodes: choose fewer bins "
        "(boost.max_bin) or smaller trees (boost.max_depth), or give workers more memory "
        "(cluster.memory_limit)."
    )


def _any_member(wanted: bool) -> bool:
    return _least(int(not wanted)) == 0


def _least(number: int) -> int:
    """Of all members' numbers."""
    if collective.get_world_size() == 1:
        return number
    return int(collective.allreduce(np.array([number], np.int64), collective.Op.MIN)[0])


def _reason(share: Share, need: Need, held: int) -> str:
    room = share.room
    where = (
        f"the bins of the features are read from {room.beyond} in every round (external memory)."
    )
    if share.options.after_loss:
        return (
            f"A worker was ended at its memory limit (cluster.memory_limit): from then on {where}"
        )
    if share.options.external == "always":
        return f"{where[0].upper()}{where[1:-1]}, as cluster.external_memory is 'always'."
    assert room.limit is not None
    return (
        f"A worker's share of {need.rows:,} rows × {need.features:,} features takes about "
        f"{megabytes(need.in_memory)} in memory, beside {megabytes(held)} that the worker holds "
        f"already. Its memory limit is {megabytes(room.limit)} ({room.setting}), so "
        f"{where}"
    )

"""In memory or on disk: where a worker's share of the binned features goes, decided from numbers.

In memory XGBoost keeps every value's bin twice, by row and by column. On disk (its external
memory) the pages are read in every round and the workers keep what is one number
per row. The model's bytes are the same, so each training takes what fits.
"""

import ctypes
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import clear_frames
from typing import ClassVar, Literal

import numpy as np
import psutil
from xgboost import collective

from tasks.engine.dataset import Frozen
from tasks.engine.errors import RunError
from tasks.engine.matrix import Float32, Pages, Schema
from tasks.engine.round_error import COPIED_BYTES
from tasks.engine.workers import megabytes

ExternalMemory = Literal["auto", "always", "never"]

# Of the memory limit: Dask's nanny ends a worker at 0.95, and the estimate leaves a little.
FILLED = 0.9
ENDED = 0.95
# What batches may be kept in between XGBoost's reads, where there is room: a share of the limit,
# or without a limit a plain amount. Reading and scaling them again takes an eighth of the time that
# XGBoost spends on finding their bins, so memory is worth more.
CACHE_SHARE = 1 / 64
CACHE_BYTES = 256 << 20
# Measured with XGBoost 3.2.0, peaks of resident memory. Per row: label, margin, gradient, hessian
# and place in the tree; an objective of our own also has positions, weights and 64 bits.
ROW_BYTES = 64
OWN_ROW_BYTES = 128
# Per value of a batch: as it is decoded, as float32, the same of the one read ahead, and its page.
BATCH_BYTES = 24
# A page on disk is a little larger than in memory.
PAGE_OVERHEAD = 1.15


# What is kept free of a disk that others write to as well, and pages that are not written yet.
SPARE_BYTES = 32 << 20
PAGE_ROWS = 131_072
# Copies of labels and margins make a round's RMSE quick: they may take so much of the limit.
COPIES_SHARE = 1 / 32
ORDERED_ROWS = 131_072
LEAST_PAGE_ROWS = 4_096
PAGE_SHARE = 1 / 32
PAGES_AHEAD = 4
MORE_DISK = (
    "Make room there, put BOOSTLINE_HOME on a larger disk (or the --local-directory of workers "
    "that were started elsewhere), or give workers more memory (cluster.memory_limit)."
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
class Need:
    """Bytes that a share of the rows takes. `largest` is the number of rows of its largest batch,
    `bins` that of bins of a feature at most.
    """

    rows: int
    largest: int
    features: int
    bins: int
    missing: bool
    own_objective: bool

    @property
    def value(self) -> int:
        """Of one value: its bin by row and by column. With missing values in any of the features
        XGBoost keeps all bins by row as 4 bytes.
        """
        column = 1 if self.bins <= 256 else 2 if self.bins <= 65_536 else 4
        return (4 if self.missing else column) + column

    @property
    def matrix(self) -> int:
        return self.rows * (self.features * self.value + 8 * self.missing)

    @property
    def state(self) -> int:
        """What is kept in memory in either case."""
        return self.rows * (OWN_ROW_BYTES if self.own_objective else ROW_BYTES)

    @property
    def batch(self) -> int:
        return self.largest * self.features * BATCH_BYTES

    @property
    def in_memory(self) -> int:
        """At the peak: batches are read before there are gradients."""
        return self.matrix + max(self.state, self.batch)

    @property
    def pages(self) -> int:
        return int(self.matrix * PAGE_OVERHEAD)

    def too_large(self, mode: ExternalMemory) -> str:
        """What the share takes, and the way out, for workers that died of it."""
        if mode == "never":
            kept = f"{megabytes(self.matrix + self.state)} as bins and gradients"
            disk = "let bins go to disk (cluster.external_memory='auto'), "
        else:
            kept = f"{megabytes(self.state)} as labels, margins and gradients, with bins on disk"
            disk = ""
        return (
            f"A share of {self.rows:,} rows × {self.features:,} features takes about {kept}, "
            f"beside some 400 MB for the libraries and batches of {self.largest:,} rows as they "
            f"are read. Give workers more memory (cluster.memory_limit), {disk}spread the rows "
            "over more of them (cluster.workers), or use smaller row groups "
            "(data.row_group_rows)."
        )


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
        if self.limit is None or held + need.state <= ENDED * self.limit:
            return
        raise RunError(
            f"A share of {need.rows:,} rows takes about {megabytes(need.state)} for labels, "
            f"margins and gradients, even with its bins on disk, and the worker {self.worker} "
            f"holds {megabytes(held)} already: its memory limit is {megabytes(self.limit)} "
            "(cluster.memory_limit). Give workers more memory (cluster.memory_limit), or spread "
            "the rows over more of them (cluster.workers)."
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
        """XGBoost holds a few pages at once."""
        if self.limit is None:
            return PAGE_ROWS
        bytes_ = PAGE_SHARE * self.limit
        return max(LEAST_PAGE_ROWS, min(PAGE_ROWS, int(bytes_ / (need.features * need.value + 8))))

    def page_bytes(self) -> int | None:
        """To which XGBoost puts pages together, which it does on a GPU alone."""
        return None

    def check_page(self, need: Need, free: int) -> None:
        """Raises RunError where the disk fills up: XGBoost ends the process when a write fails."""
        page = self.page_rows(need) * (need.features * need.value + 8)
        if free < PAGES_AHEAD * page * self.sharing + SPARE_BYTES:
            raise RunError(
                f"The disk filled up while the binned features were written: {self.scratch} has "
                f"{megabytes(free)} free. {MORE_DISK}"
            )

    def cache(self, taken: int) -> int:
        """Bytes for batches between XGBoost's reads, beside `taken` ones."""
        if self.limit is None:
            return CACHE_BYTES
        return max(0, min(int(CACHE_SHARE * self.limit), int(FILLED * self.limit) - taken))

    def orders_rows(self, need: Need) -> bool:
        """Whether train rows are sorted (`row_order`): fewer lie in the processor's caches."""
        return need.rows >= ORDERED_ROWS

    def copies_margins(self, need: Need) -> bool:
        """Whether every round may copy the rows' labels and margins (`round_error`)."""
        return self.limit is None or COPIED_BYTES * need.rows <= COPIES_SHARE * self.limit


BOUNDLESS = Room()


@dataclass(frozen=True)
class Share:
    """A worker's part and the room for it; `rows` and `largest` as in `Need`."""

    rows: int = 0
    largest: int = 0
    options: MatrixOptions = AUTO
    room: Room = BOUNDLESS

    def need(self, sample: Float32, schema: Schema, max_bin: int, own_objective: bool) -> Need:
        """Every category has a bin of its own, so they may be more than `max_bin`."""
        missing = self.options.missing
        coded = sample[:, [kind == "c" for kind in schema.types]]
        most = np.nanmax(coded, initial=0.0) if coded.size else 0.0
        return self.room.need(
            rows=int(self.rows * self.options.used),
            largest=self.largest,
            features=len(schema.names),
            bins=max(max_bin, int(most) + 1),
            missing=bool(np.isnan(sample).any()) if missing is None else missing,
            own_objective=own_objective,
        )


@dataclass(frozen=True)
class Place:
    """Where the matrices go: pages on disk, or None for memory; `cache` bytes for batches;
    whether labels and margins may be copied.
    """

    pages: Pages | None
    cache: int
    copies: bool


@contextmanager
def place_of(share: Share, need: Need, tell: Callable[[str], None]) -> Iterator[Place]:
    """Decides, inside the group: when one member's share does not fit, all use the disk, and where
    one member lacks the memory for copies, none makes them.

    So the group takes one path through XGBoost, and what is said of the run is one thing. `tell`
    gets a sentence from a member whose own share goes to disk. The folder is removed at the end.

    Raises:
        RunError: neither memory nor disk have room.
    """
    room, mode = share.room, share.options.external
    held = room.held()
    own = room.prefers_disk(mode, need, held)
    copies = not _any_member(not room.copies_margins(need))
    if not _any_member(own):
        batches = room.cache(held + need.matrix + need.batch)
        yield Place(None, batches, copies)
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

        pages = Pages(Path(folder), room.page_rows(need), check, room.page_bytes())
        # after a loss the estimate is known to be too low
        after_loss = share.options.after_loss
        batches = 0 if after_loss else room.cache(held + need.batch + need.state)
        try:
            yield Place(pages, batches, copies)
        except BaseException as error:
            # whose traceback holds the matrices: XGBoost complains where pages went before them
            clear_frames(error.__traceback__)
            raise


def give_back() -> None:
    """Freed memory goes back to the system, by the page: boosting takes none of it in such pieces.

    For where workers keep what they freed; without glibc nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _any_member(wanted: bool) -> bool:
    if collective.get_world_size() == 1:
        return wanted
    return bool(collective.allreduce(np.array([wanted], np.int64), collective.Op.MAX)[0])


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

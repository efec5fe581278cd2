"""Batches of rows on their way to XGBoost: what they are, where they come from, which are kept.

Decoded batches are kept between XGBoost's reads within a budget of bytes and read again beyond it;
the next one is read ahead.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt64 = npt.NDArray[np.uint64]
Side = Literal["train", "valid"]


@dataclass(frozen=True)
class Batch:
    """n rows: `features` float32 (n, p) in any order, NaN where missing; `label` float64 (n,), the
    target itself; `position` uint64 (n,); `weight` float64 (n,) or None.
    """

    features: Float32
    label: Float64
    position: UInt64
    weight: Float64 | None = None

    @classmethod
    def of(cls, batches: "Sequence[Batch]") -> "Batch":
        """The rows of all `batches`, in order; weights where all of them have some."""
        weights = [batch.weight for batch in batches if batch.weight is not None]
        return cls(
            np.concatenate([batch.features for batch in batches]),
            np.concatenate([batch.label for batch in batches]),
            np.concatenate([batch.position for batch in batches]),
            np.concatenate(weights) if len(weights) == len(batches) else None,
        )

    @property
    def bytes(self) -> int:
        weight = 0 if self.weight is None else self.weight.nbytes
        return self.features.nbytes + self.label.nbytes + self.position.nbytes + weight


@dataclass(frozen=True)
class Sides:
    """The train and the valid rows of one read."""

    train: Batch
    valid: Batch


Counts = dict[Side, int]


@dataclass(frozen=True)
class BatchSource:
    """Where a batch comes from: `read` gives its rows, `count` their numbers and no more."""

    read: Callable[[], Sides]
    count: Callable[[], Counts]

    def sorted(self, order: Callable[[Batch], Batch]) -> "BatchSource":
        """The same rows, those that train in another order."""

        def read() -> Sides:
            sides = self.read()
            return Sides(order(sides.train), sides.valid)

        return BatchSource(read, self.count)


class BatchCache:
    """Reads batches for both matrices: those that fit in `budget` bytes are read once."""

    def __init__(self, sources: Sequence[BatchSource], budget: int, reader: ThreadPoolExecutor):
        self._sources = sources
        self._room = budget
        self._reader = reader
        self._kept: dict[tuple[Side, int], Batch] = {}
        self._counts: dict[int, Counts] = {}
        self._ahead: tuple[int, Future[Sides]] | None = None

    def __len__(self) -> int:
        return len(self._sources)

    def count(self, side: Side, index: int) -> int:
        """The rows of batch `index`. Raises whatever the source raises."""
        if index not in self._counts:
            self._counts[index] = self._sources[index].count()
        return self._counts[index][side]

    def read(self, side: Side, index: int, *, again: bool = True) -> Batch:
        """Batch `index`, kept where it is to be read `again`; starts to read the next one. Raises
        whatever the source raises.
        """
        batch = self._kept.get((side, index)) or self._fresh(side, index, again)
        following = (index + 1) % len(self)
        if (side, following) not in self._kept and self._ahead is None and following != index:
            self._ahead = (following, self._reader.submit(self._sources[following].read))
        return batch

    def forget(self, side: Side) -> None:
        """Drops what is kept of a matrix that is built."""
        for key in [key for key in self._kept if key[0] == side]:
            self._room += self._kept.pop(key).bytes

    def _fresh(self, side: Side, index: int, again: bool) -> Batch:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == index:
            sides = ahead[1].result()
        else:
            sides = self._sources[index].read()
        # valid rows are few and would otherwise be read again only for themselves
        if side == "train":
            self._keep("valid", index, sides.valid)
        batch = sides.train if side == "train" else sides.valid
        if again:
            self._keep(side, index, batch)
        return batch

    def _keep(self, side: Side, index: int, batch: Batch) -> None:
        if (side, index) not in self._kept and batch.bytes <= self._room:
            self._kept[side, index] = batch
            self._room -= batch.bytes


@contextmanager
def open_cache(sources: Sequence[BatchSource], budget: int) -> Iterator[BatchCache]:
    """A cache whose reading thread is joined at the end."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        yield BatchCache(sources, budget, reader)

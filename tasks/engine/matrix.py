"""From batches of rows to XGBoost's binned matrices, streaming.

XGBoost reads an iterator three times where a reference gives the bins: it counts the values, bins
them, and arranges the bins by column. Where no value is missing the first and the last read ask for
nothing but numbers of rows, and the batches are read once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb

from tasks.engine.batches import Batch, BatchCache, Float32, Float64, Side, UInt64
from tasks.engine.errors import RunError

READ_OF_VALUES = 2  # of XGBoost's three, from 1
UNEXPECTED = (
    "The profile found no missing value, but rows that were read to train on have some. The table "
    "has changed since, or its loader returns other rows at every call."
)


ToLabel = Callable[[Float64], Float32]


@dataclass(frozen=True)
class Schema:
    """What XGBoost calls the features and takes them for ("q" numeric, "c" category)."""

    names: tuple[str, ...]
    types: tuple[str, ...]


@dataclass(frozen=True)
class Pages:
    """A folder for the pages of matrices on disk, of `rows` rows at most. `check` is called before
    each, and raises where it has no room. On a GPU XGBoost puts pages together to `bytes`.
    """

    folder: Path
    rows: int
    check: Callable[[], None]
    bytes: int | None = None


class BatchIterator(xgb.DataIter):
    """One side's batches in order, as XGBoost asks for them.

    XGBoost refuses an iterator without batches, and a batch without features, so a worker
    without rows gives one batch of no rows. `position` and `weight` are those of all rows, in the
    matrix's order, once it is built, unless `keeps_rows` is False. An exception of a source
    surfaces as itself when the matrix has been built: XGBoost's `DataIter` keeps it until then.
    With `pages` the matrix is on disk. `complete` says that no value is missing and the matrix is
    in the memory of a CPU: then the rows are read once.
    """

    def __init__(
        self,
        cache: BatchCache,
        side: Side,
        schema: Schema,
        to_label: ToLabel,
        pages: Pages | None = None,
        *,
        keeps_rows: bool = True,
        complete: bool = False,
    ) -> None:
        super().__init__(
            cache_prefix=None if pages is None else str(pages.folder / side),
            min_cache_page_bytes=None if pages is None else pages.bytes,
        )
        self._pages = pages
        self._keeps_rows = keeps_rows
        self._complete = complete
        self._reads = 0
        self._cache = cache
        self._side = side
        self._schema = schema
        self._to_label = to_label
        self._next = 0
        self._rest: tuple[Float32, Float64] | None = None
        self._held: Batch | None = None
        self._empty: Batch | None = None
        self._given_rows = False
        self._rows: dict[int, tuple[UInt64, Float64 | None]] = {}

    def reset(self) -> None:
        self._reads += 1
        self._next = 0
        self._rest = None
        self._held = None
        self._given_rows = False

    def next(self, input_data: Callable[..., None]) -> bool:
        if self._complete and self._reads != READ_OF_VALUES:
            return self._give_number(input_data)
        if self._rest is not None:
            self._give_page(input_data, *self._rest)
            return True
        batch = self._take()
        if batch is not None:
            self._given_rows = True
            self._give_page(input_data, *self._together(batch))
            return True
        if self._given_rows:
            return False
        self._given_rows = True
        empty = self._nothing()
        self._give(input_data, empty.features, empty.label)
        return True

    def _nothing(self) -> Batch:
        """No rows; one that was read lies where the others' rows do: XGBoost asks the first."""
        if self._empty is not None:
            return self._empty
        width = len(self._schema.names)
        return Batch(
            np.empty((0, width), np.float32), np.empty(0), np.empty(0, np.uint64), np.empty(0)
        )

    def _take(self) -> Batch | None:
        """The next batch that has rows."""
        held, self._held = self._held, None
        if held is not None:
            return held
        while self._next < len(self._cache):
            index = self._next
            self._next += 1
            batch = self._cache.read(self._side, index, again=not self._complete)
            if len(batch.label) == 0:
                self._empty = batch
                continue
            if self._complete and np.isnan(batch.features.min()):
                raise RunError(UNEXPECTED)
            if self._keeps_rows:
                self._rows.setdefault(index, (batch.position, batch.weight))
            return batch
        return None

    def _give_number(self, input_data: Callable[..., None]) -> bool:
        """The next batch that has rows, of which XGBoost only learns how many they are: it refuses
        infinite values where it looks at them.
        """
        while self._next < len(self._cache):
            rows = self._cache.count(self._side, self._next)
            self._next += 1
            if rows:
                break
        else:
            if self._given_rows:
                return False
            rows = 0
        self._given_rows = True
        nowhere = np.broadcast_to(np.float32(np.inf), (rows, len(self._schema.names)))
        self._give(input_data, nowhere, None)
        return True

    def _together(self, first: Batch) -> tuple[Float32, Float64]:
        """Features and labels of as many batches as fit a page: each takes memory of its own."""
        found = [first]
        rows = len(first.label)
        while self._pages is not None and rows < self._pages.rows:
            following = self._take()
            if following is None:
                break
            rows += len(following.label)
            if rows > self._pages.rows:
                self._held = following
                break
            found.append(following)
        if len(found) == 1:
            return first.features, first.label
        return (
            np.concatenate([batch.features for batch in found]),
            np.concatenate([batch.label for batch in found]),
        )

    @property
    def position(self) -> UInt64:
        parts = [self._rows[index][0] for index in sorted(self._rows)]
        return np.concatenate(parts) if parts else self._nothing().position

    @property
    def weight(self) -> Float64 | None:
        parts = [self._rows[index][1] for index in sorted(self._rows)]
        whole = [part for part in parts if part is not None]
        if not parts:
            return self._nothing().weight
        return np.concatenate(whole) if len(whole) == len(parts) else None

    def _give_page(
        self, input_data: Callable[..., None], features: Float32, label: Float64
    ) -> None:
        """The rows are one page, or where pages are smaller its first; the rest is to come."""
        rows = len(label)
        if self._pages is not None:
            self._pages.check()
            rows = min(rows, self._pages.rows)
        self._rest = (features[rows:], label[rows:]) if rows < len(label) else None
        self._give(input_data, features[:rows], label[:rows])

    def _give(
        self, input_data: Callable[..., None], features: Float32, label: Float64 | None
    ) -> None:
        input_data(
            data=features,
            label=None if label is None else self._to_label(label),
            feature_names=list(self._schema.names),
            feature_types=list(self._schema.types),
        )


def cut_points(values: Float32, max_bin: int) -> Float32:
    """Where the bins of a feature begin: float32 (k,), rising, of values float32 (n,), some NaN.

    All distinct values where they are `max_bin` or fewer; else every n / max_bin-th in their order,
    so that bins hold about as many rows each.
    """
    known: Float32 = np.sort(values[~np.isnan(values)])
    rises = known[1:] != known[:-1]
    if np.count_nonzero(rises) < max_bin:
        first: Float32 = known[np.concatenate([np.ones(min(1, len(known)), bool), rises])]
        return first
    return np.unique(known[np.arange(max_bin) * len(known) // max_bin])


def reference_matrix(sample: Float32, schema: Schema, max_bin: int, threads: int) -> Any:
    """Bins of every feature from a sample float32 (n, p); categories keep one each.

    Of so few rows as there are cut points XGBoost makes exactly those its cuts. Must be built
    before the worker joins its group: inside it XGBoost would merge every worker's sketch, and the
    bins would depend on how many there are.
    """
    cuts = [
        np.unique(column[~np.isnan(column)]) if kind == "c" else cut_points(column, max_bin)
        for column, kind in zip(sample.T, schema.types, strict=True)
    ]
    rows = np.empty((max(1, *map(len, cuts)), len(cuts)), np.float32)
    for place, points in enumerate(cuts):
        rows[: len(points), place] = points
        rows[len(points) :, place] = points[-1] if len(points) else np.nan
    return xgb.QuantileDMatrix(
        rows,
        feature_names=list(schema.names),
        feature_types=list(schema.types),
        enable_categorical=True,
        max_bin=max_bin,
        nthread=threads,
    )


def binned_matrix(rows: BatchIterator, like: Any, max_bin: int, threads: int) -> Any:
    """The matrix of an iterator's rows with the bins of the matrix `like`.

    Raises whatever a batch source raises.
    """
    kind = xgb.QuantileDMatrix if rows.cache_prefix is None else xgb.ExtMemQuantileDMatrix
    return kind(rows, ref=like, enable_categorical=True, max_bin=max_bin, nthread=threads)


@dataclass(frozen=True)
class Matrices:
    """The matrices of a worker's share; `rows` were those of `train`."""

    rows: BatchIterator
    train: Any
    valid: Any | None


def matrices(
    cache: BatchCache,
    reference: Any,
    schema: Schema,
    to_label: ToLabel,
    max_bin: int,
    threads: int,
    *,
    with_valid: bool,
    keeps_rows: bool,
    complete: bool = False,
    pages: Pages | None = None,
) -> Matrices:
    """Both matrices with the bins of `reference`, in memory or on disk.

    `keeps_rows`: whether the positions and weights of the train rows are wanted after. `complete`:
    no value is missing, and the matrices are a CPU's.

    Raises:
        RunError: a value is missing though `complete` says that none is.
        Whatever a batch source raises.
    """
    complete = complete and pages is None
    rows = BatchIterator(
        cache, "train", schema, to_label, pages, keeps_rows=keeps_rows, complete=complete
    )
    train = binned_matrix(rows, reference, max_bin, threads)
    cache.forget("train")
    if not with_valid:
        return Matrices(rows, train, None)
    valid_rows = BatchIterator(
        cache, "valid", schema, to_label, pages, keeps_rows=False, complete=complete
    )
    valid = binned_matrix(valid_rows, train, max_bin, threads)
    cache.forget("valid")
    return Matrices(rows, train, valid)

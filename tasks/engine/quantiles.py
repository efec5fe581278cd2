"""Exact quantiles of columns that no process could hold: counting, digit after digit.

A float64's bits, their sign turned, order as unsigned integers just as the numbers do. A pass
counts the next digit of those integers among the values that share the digits known so far with a
wanted order statistic; after a first digit of 20 bits (sign, exponent and 8 bits of the mantissa)
and three of 16 at most every wanted value is known to its last bit. Where few values share the
known digits, one pass counts all that is left of them, so that two passes do for millions of rows
and one for a small table.

A summary holds at most 2^20 counts of 16 bytes (16 MiB) for a name in the first pass, where values
have every exponent there is; some thousands usually. Later ones hold 2^16 (1 MiB) for each wanted
order statistic, of which a quantile has two: 18 MiB for nine deciles, whatever the rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.engine.dataset import Batch, RowGroup, rows_in
from tasks.engine.exact import merge_by_key
from tasks.engine.fold import fold
from tasks.engine.hashing import Float64, UInt64

Values = Callable[[Batch], dict[str, Float64]]

FIRST_BITS = 20
DIGIT_BITS = 16
# From so many times more places than values on, values are sorted and not counted by place.
SPARSE = 4
_SIGN = np.uint64(1 << 63)
_NAN = 0xFFF8 << 48  # image of NaN, above that of infinity


def image(values: Float64) -> UInt64:
    """uint64 (n,) that order as float64 (n,) do: -0.0 is 0.0, every NaN is one above infinity."""
    plain = np.where(np.isnan(values), np.nan, values + 0.0)
    bits = plain.view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def number(order: int) -> float:
    """The float64 of an image."""
    bits = order ^ (1 << 63) if order >> 63 else order ^ ((1 << 64) - 1)
    return float(np.array(bits, dtype=np.uint64).view(np.float64))


@dataclass(frozen=True)
class Bracket:
    """Values whose image, shifted right by `shift`, is `prefix`; next known by `next_shift`."""

    prefix: int
    shift: int
    next_shift: int


@dataclass(frozen=True)
class Counts:
    """How often each `prefix` (uint64 (k,), rising, next_shift bits cut off) occurs: int64 (k,)."""

    prefix: UInt64
    count: npt.NDArray[np.int64]

    def merge(self, other: "Counts") -> "Counts":
        if not len(self.prefix):
            return other
        place = np.minimum(np.searchsorted(self.prefix, other.prefix), len(self.prefix) - 1)
        if np.array_equal(self.prefix[place], other.prefix):
            count = self.count.copy()
            count[place] += other.count
            return Counts(self.prefix, count)
        both = np.concatenate([self.prefix, other.prefix])
        order = np.argsort(both, kind="stable")  # which merges runs that are in order already
        both = both[order]
        starts = np.flatnonzero(np.concatenate([[True], both[1:] != both[:-1]]))
        count = np.concatenate([self.count, other.count])[order]
        return Counts(both[starts], np.add.reduceat(count, starts))


@dataclass
class Search:
    """One name's order statistics on their way: rank (from 0, whole column) to what is known.

    `below` is the number of values below the bracket.
    """

    quantiles: Sequence[float]
    rows: int = -1
    brackets: dict[int, tuple[Bracket, int]] = field(default_factory=dict)
    found: dict[int, float] = field(default_factory=dict)

    def open(self, first: Bracket, rows: int) -> None:
        """The first pass has counted all `rows`: the ranks that the quantiles need."""
        self.rows = rows
        for quantile in self.quantiles if self.rows else ():
            rank = int(np.floor((self.rows - 1) * quantile))
            for wanted in (rank, min(rank + 1, self.rows - 1)):
                self.brackets[wanted] = (first, 0)

    def narrow(self, counted: Mapping[Bracket, Counts], few: int) -> None:
        """Takes a pass's counts: every open rank gets its next digit, or its value."""
        for rank, (bracket, below) in list(self.brackets.items()):
            counts = counted[bracket]
            upto = below + np.cumsum(counts.count)
            at = int(np.searchsorted(upto, rank, side="right"))
            prefix, rows = int(counts.prefix[at]), int(counts.count[at])
            if bracket.next_shift == 0:
                self.found[rank] = number(prefix)
                del self.brackets[rank]
                continue
            shift = bracket.next_shift
            next_shift = 0 if rows <= few else max(0, shift - DIGIT_BITS)
            self.brackets[rank] = (Bracket(prefix, shift, next_shift), int(upto[at]) - rows)

    def answers(self, has_nan: bool) -> list[float]:
        if not self.rows or has_nan:
            return [float("nan")] * len(self.quantiles)
        return [self._between(quantile) for quantile in self.quantiles]

    def _between(self, quantile: float) -> float:
        """Linear interpolation, rounded as np.quantile rounds it."""
        virtual = (self.rows - 1) * quantile
        rank = int(np.floor(virtual))
        part = virtual - rank
        low = self.found[rank]
        high = self.found[min(rank + 1, self.rows - 1)]
        if part == 0 or low == high:
            return low
        gap = high - low
        return high - gap * (1 - part) if part >= 0.5 else low + gap * part


def exact_quantiles(
    client: Any,
    row_groups: Sequence[RowGroup],
    values: Values,
    wanted: Mapping[str, Sequence[float]],
    *,
    few: int = 1 << DIGIT_BITS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """The quantiles of every wanted name, with the linear interpolation of np.quantile.

    `values` reads a batch and returns float64 (any length) for each name; all names share the
    passes. `wanted` has quantiles from 0 to 1. -0.0 is 0.0; a name with a NaN, or without any
    value, answers NaN throughout. Up to `few` values that share their known digits are counted
    whole instead of digit by digit. `on_progress` hears every pass from the start.

    Raises:
        ValueError: a quantile outside 0 to 1; no row groups.
    """
    for name, quantiles in wanted.items():
        if not all(0 <= quantile <= 1 for quantile in quantiles):
            raise ValueError(f"quantiles of {name!r} must lie from 0 to 1: {list(quantiles)}")
    rows = rows_in(row_groups)
    first = Bracket(prefix=0, shift=64, next_shift=0 if rows <= few else 64 - FIRST_BITS)
    searches = {name: Search(quantiles) for name, quantiles in wanted.items()}
    open_brackets = {name: {first} for name in wanted}
    has_nan: dict[str, bool] = {}
    while open_brackets:
        summarise = partial(_count, values, open_brackets)
        counted = fold(client, row_groups, summarise, _merge, on_progress)
        for name in open_brackets:
            search = searches[name]
            if search.rows < 0:
                total = counted[name][first]
                search.open(first, int(total.count.sum()))
                has_nan[name] = bool(np.any(total.prefix >= np.uint64(_NAN >> first.next_shift)))
            search.narrow(counted[name], few)
        open_brackets = {
            name: {bracket for bracket, _ in search.brackets.values()}
            for name, search in searches.items()
            if search.brackets and not has_nan[name]
        }
    return {name: search.answers(has_nan[name]) for name, search in searches.items()}


def _count(
    values: Values, brackets: Mapping[str, set[Bracket]], batch: Batch
) -> dict[str, dict[Bracket, Counts]]:
    """One pass over a batch: the counts in every open bracket."""
    columns = values(batch)
    counted = {}
    for name, opened in brackets.items():
        orders = image(columns[name])
        counted[name] = {bracket: _count_in(orders, bracket) for bracket in opened}
    return counted


def _count_in(orders: UInt64, bracket: Bracket) -> Counts:
    if bracket.shift < 64:
        orders = orders[orders >> np.uint64(bracket.shift) == np.uint64(bracket.prefix)]
    cut = orders >> np.uint64(bracket.next_shift)
    lowest = cut.min(initial=np.uint64((1 << 64) - 1))
    span = int(cut.max(initial=lowest) - lowest) + 1
    if span > SPARSE * len(cut):
        prefix, count = np.unique(cut, return_counts=True)
        return Counts(prefix, count.astype(np.int64))
    # counting is quicker than sorting where the digits lie close together
    by_digit = np.bincount((cut - lowest).astype(np.int64))
    digits = np.flatnonzero(by_digit)
    return Counts(digits.astype(np.uint64) + lowest, by_digit[digits].astype(np.int64))


def _merge(
    left: dict[str, dict[Bracket, Counts]], right: dict[str, dict[Bracket, Counts]]
) -> dict[str, dict[Bracket, Counts]]:
    return {name: merge_by_key(left[name], right[name], Counts.merge) for name in left}

"""Evaluation: predictions that lie in Parquet parts become a Report, without collecting them.

First the counting passes for medians, deciles and ranges (one for a small table, two or three for
a large one), then one fold for everything else. All sums are exact, so the report is the same to
the last bit on any cluster and for the parts in any order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.engine.bootstrap import BootstrapSums, Scale, bootstrap_sums, interval
from tasks.engine.dataset import Batch, RowGroup, place_in, rows_in
from tasks.engine.errors import RunError
from tasks.engine.exact import Int64, merge_by_key
from tasks.engine.fold import fold
from tasks.engine.frames import read_arrow
from tasks.engine.hashing import Float64, UInt64
from tasks.engine.metrics import NOTHING, ErrorSums, ErrorTerms, metrics, part_of_rows
from tasks.engine.quantiles import exact_quantiles
from tasks.engine.report import SIDES, Histogram, Report, Slice

BY = "by:"
BINS = 60
SHOWN_CATEGORIES = 50
MAX_CATEGORIES = 100_000
TEST = SIDES.index("test")  # the last
DECILES = 10

_DECILES = [tenth / DECILES for tenth in range(1, DECILES)]
_MIDDLE_OF_ACTUAL = [0.0, *_DECILES, 1.0, 0.001, 0.999]
_OUTER_ERROR = 0.995

Categories = dict[str | None, ErrorSums]


def evaluate(
    client: Any,
    row_groups: Sequence[RowGroup],
    *,
    by: Sequence[str],
    train_mean: float,
    features: int,
    bootstrap: int,
    confidence: float,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """The report on predictions in Parquet parts.

    Parts have the columns `actual` and `predicted` (float64), `side` (int8, place in SIDES),
    `position` (uint64 keys, read for the bootstrap only) and `by:<name>` (string) for each name in
    `by`. `features` is their number, for the adjusted R²; `bootstrap` the number of replicates, 0
    for no interval. `on_progress` gets the work done over all passes, in rows, and all rows.

    Raises:
        ValueError: there are no row groups.
        RunError: an actual or predicted value is missing or infinite.
    """
    steps = _Steps(rows_in(row_groups), on_progress)
    found = exact_quantiles(
        client,
        row_groups,
        partial(_quantile_columns, train_mean),
        {
            "actual": _MIDDLE_OF_ACTUAL,
            **{f"{side} error": [0.5, _OUTER_ERROR, 1.0] for side in SIDES},
            **{f"{side} deviation": [0.5, 1.0] for side in SIDES},
        },
        on_progress=steps.counted,
    )
    lowest, *edges, highest, low, high = found["actual"]
    summarise = SummariseBatch(
        by=tuple(by),
        train_mean=train_mean,
        edges=tuple(edges),
        value_range=_range(low, high),
        error_range=_range(-found["test error"][1], found["test error"][1]),
        scale=Scale.over(found["test deviation"][1], found["test error"][2]),
        replicates=bootstrap,
        seed=seed,
    )
    summary = fold(client, row_groups, summarise, Summary.merge, steps.summed)
    return _report(
        summary,
        summarise,
        features=features,
        confidence=confidence,
        errors=[found[f"{side} error"][0] for side in SIDES],
        deviations=[found[f"{side} deviation"][0] for side in SIDES],
        decile_bounds=[lowest, *edges, highest],
    )


class _Steps:
    """One progress over passes whose number isn't known before: never back, full at the end."""

    def __init__(self, rows: int, tell: Callable[[int, int], None]) -> None:
        self._rows, self._tell = rows, tell
        self._passes, self._counted = 0, 0.0

    def counted(self, done: int, rows: int) -> None:
        expected = max(self._passes + 1, 2) + 1
        self._counted = max(self._counted, (self._passes + done / rows) / expected)
        self._passes += done == rows
        self._tell(int(self._counted * self._rows), self._rows)

    def summed(self, done: int, rows: int) -> None:
        before = int(self._counted * self._rows)
        self._tell(before + (rows - before) * done // rows, self._rows)


@dataclass(frozen=True)
class Summary:
    """What a batch adds to the report; `sides` by place in SIDES, `categories` by column.

    A column with more than MAX_CATEGORIES categories has None in place of them.
    """

    sides: tuple[ErrorSums, ...]
    deciles: tuple[ErrorSums, ...]
    categories: dict[str, Categories | None]
    predicted_actual: Int64
    residuals: Int64
    bootstrap: BootstrapSums | None

    def merge(self, other: "Summary") -> "Summary":
        bootstrap = self.bootstrap
        if bootstrap is not None and other.bootstrap is not None:
            bootstrap = bootstrap.merge(other.bootstrap)
        return Summary(
            sides=_merge_each(self.sides, other.sides),
            deciles=_merge_each(self.deciles, other.deciles),
            categories=merge_by_key(self.categories, other.categories, _merge_categories),
            predicted_actual=self.predicted_actual + other.predicted_actual,
            residuals=self.residuals + other.residuals,
            bootstrap=bootstrap,
        )


@dataclass(frozen=True)
class SummariseBatch:
    """Reads a batch and sums it up: the function that the fold sends to the workers.

    `edges` part the deciles of the test target, `value_range` is the histograms' of the target
    and `error_range` that of the residuals.
    """

    by: tuple[str, ...]
    train_mean: float
    edges: tuple[float, ...]
    value_range: tuple[float, float]
    error_range: tuple[float, float]
    scale: Scale
    replicates: int
    seed: int

    def __call__(self, batch: Batch) -> Summary:
        names = [*(BY + name for name in self.by), *(["position"] if self.replicates else [])]
        rows = _read(batch, names)
        is_test = rows.side == TEST
        actual, predicted = rows.actual[is_test], rows.predicted[is_test]
        # train, valid, and after them the test rows by decile: one sum serves both tables
        part = rows.side.astype(np.int64)
        part[is_test] += np.searchsorted(self.edges, actual, side="left")
        terms = ErrorTerms(rows.actual, rows.predicted, self.train_mean)
        sums = terms.sums(part, TEST + DECILES)
        position = rows.text["position"].to_numpy() if self.replicates else np.empty(0, np.uint64)
        return Summary(
            sides=(*sums[:TEST], reduce(ErrorSums.merge, sums[TEST:])),
            deciles=tuple(sums[TEST:]),
            categories={
                name: _category_sums(terms, rows.text[BY + name], is_test) for name in self.by
            },
            predicted_actual=_counts(actual, self.value_range, predicted, self.value_range),
            residuals=_counts(predicted, self.value_range, actual - predicted, self.error_range),
            bootstrap=self._bootstrap(position, is_test, actual, predicted),
        )

    def _bootstrap(
        self, position: UInt64, is_test: npt.NDArray[np.bool_], actual: Float64, predicted: Float64
    ) -> BootstrapSums | None:
        if not self.replicates:
            return None
        return bootstrap_sums(
            position[is_test],
            actual - self.train_mean,
            predicted - actual,
            self.scale,
            self.replicates,
            self.seed,
        )


@dataclass(frozen=True)
class _Rows:
    """A batch's columns (n,): `text` has those beyond the usual three by name."""

    actual: Float64
    predicted: Float64
    side: npt.NDArray[np.int8]
    text: dict[str, pa.ChunkedArray]


def _read(batch: Batch, names: Sequence[str] = ()) -> _Rows:
    table = read_arrow(batch, ["actual", "predicted", "side", *names])
    actual = table["actual"].to_numpy()
    predicted = table["predicted"].to_numpy()
    for name, values in (("actual", actual), ("predicted", predicted)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            path, number = place_in(batch, int(wrong[0]))
            raise RunError(
                f"{len(wrong)} {name} values are not finite, the first ({values[wrong[0]]}) in row "
                f"{number:,} of {path}."
            )
    return _Rows(actual, predicted, table["side"].to_numpy(), {name: table[name] for name in names})


def _quantile_columns(train_mean: float, batch: Batch) -> dict[str, Float64]:
    """Of a batch: |error| and |deviation| of each side, and the test target."""
    rows = _read(batch)
    columns = {"actual": rows.actual[rows.side == TEST]}
    for code, side in enumerate(SIDES):
        actual = rows.actual[rows.side == code]
        columns[f"{side} error"] = np.abs(rows.predicted[rows.side == code] - actual)
        columns[f"{side} deviation"] = np.abs(actual - train_mean)
    return columns


def _category_sums(
    terms: ErrorTerms, column: pa.ChunkedArray, is_test: npt.NDArray[np.bool_]
) -> Categories | None:
    """Of the test rows by category; `terms` are those of all rows."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    encoded = column.combine_chunks()
    texts: list[str | None] = [*encoded.dictionary.to_pylist(), None]
    codes = encoded.indices.fill_null(len(texts) - 1).to_numpy()
    present, group = np.unique(np.where(is_test, codes, -1), return_inverse=True)
    sums = terms.sums(group.astype(np.int64), len(present))
    found: Categories = {
        texts[code]: part for code, part in zip(present, sums, strict=True) if code >= 0
    }
    return found if len(found) <= MAX_CATEGORIES else None


def _merge_categories(left: Categories | None, right: Categories | None) -> Categories | None:
    if left is None or right is None:
        return None
    merged = merge_by_key(left, right, ErrorSums.merge)
    return merged if len(merged) <= MAX_CATEGORIES else None


def _merge_each(left: tuple[ErrorSums, ...], right: tuple[ErrorSums, ...]) -> tuple[ErrorSums, ...]:
    return tuple(a.merge(b) for a, b in zip(left, right, strict=True))


def _range(low: float, high: float) -> tuple[float, float]:
    """`low` to `high`, made wider where that is a point; 0 to 1 for no rows."""
    if not low <= high:
        return 0.0, 1.0
    if low == high:
        margin = max(abs(low), 1.0) / 2
        return low - margin, high + margin
    return low, high


def _bin(values: Float64, bounds: tuple[float, float]) -> Int64:
    low, high = bounds
    return np.clip((values - low) / (high - low) * BINS, 0, BINS - 1).astype(np.int64)


def _counts(
    x: Float64, x_range: tuple[float, float], y: Float64, y_range: tuple[float, float]
) -> Int64:
    """Counts int64 (BINS, BINS); what lies outside is counted in the outermost bins."""
    cell = _bin(x, x_range) * BINS + _bin(y, y_range)
    return np.bincount(cell, minlength=BINS * BINS).reshape(BINS, BINS).astype(np.int64)


def _report(
    summary: Summary,
    batch: SummariseBatch,
    *,
    features: int,
    confidence: float,
    errors: Sequence[float],
    deviations: Sequence[float],
    decile_bounds: Sequence[float],
) -> Report:
    """`errors` and `deviations` are the medians by place in SIDES."""
    by_side = list(zip(SIDES, summary.sides, errors, deviations, strict=True))
    return Report(
        metrics={side: metrics(sums, features, median) for side, sums, median, _ in by_side},
        baseline={
            side: metrics(sums.baseline(), features, median) for side, sums, _, median in by_side
        },
        deciles=_decile_slices(summary.deciles, decile_bounds),
        categories=tuple(
            part
            for name in batch.by
            for part in _category_slices(name, summary.categories[name], summary.sides[TEST])
        ),
        interval=interval(summary.bootstrap, batch.scale, confidence)
        if summary.bootstrap
        else None,
        predicted_actual=_histogram(summary.predicted_actual, batch.value_range, batch.value_range),
        residuals=_histogram(summary.residuals, batch.value_range, batch.error_range),
    )


def _decile_slices(deciles: Sequence[ErrorSums], bounds: Sequence[float]) -> tuple[Slice, ...]:
    """Non-empty deciles; many equal targets leave some empty."""
    return tuple(
        part_of_rows(
            "decile", f"{place + 1}: {_short(bounds[place])} to {_short(bounds[place + 1])}", sums
        )
        for place, sums in enumerate(deciles)
        if sums.rows
    )


def _short(number: float) -> str:
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e15 else f"{number:.4g}"


def _category_slices(name: str, categories: Categories | None, test: ErrorSums) -> list[Slice]:
    """The most frequent categories, ties by code point, and the rest in one slice."""
    if not test.rows:
        return []
    if categories is None:
        return [part_of_rows(name, f"(more than {MAX_CATEGORIES:,} values)", test)]
    ranked = sorted(
        categories.items(), key=lambda item: (-item[1].rows, item[0] is None, item[0] or "")
    )
    slices = [
        part_of_rows(name, "(missing)" if text is None else text, sums)
        for text, sums in ranked[:SHOWN_CATEGORIES]
    ]
    rest = NOTHING
    for _, sums in ranked[SHOWN_CATEGORIES:]:
        rest = rest.merge(sums)
    if rest.rows:
        others = len(ranked) - SHOWN_CATEGORIES
        slices.append(part_of_rows(name, f"({others:,} others)", rest))
    return slices


def _histogram(
    counts: Int64, x_range: tuple[float, float], y_range: tuple[float, float]
) -> Histogram:
    return Histogram(
        x_edges=tuple(np.linspace(*x_range, BINS + 1).tolist()),
        y_edges=tuple(np.linspace(*y_range, BINS + 1).tolist()),
        counts=tuple(tuple(row) for row in counts.tolist()),
    )

"""What a worker finds in one batch of row groups, and how two such findings become one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from tasks.engine.dataset import Batch, by_file, place_in, rows_in
from tasks.engine.errors import UserError
from tasks.engine.frames import Device, content_digests, on_host
from tasks.engine.hashing import stream, uniform
from tasks.engine.home import digest_of
from tasks.engine.moments import Deviations, Float64, Moments, OneColumn
from tasks.engine.parts import Slice, write_part, write_slices
from tasks.engine.report import SIDES
from tasks.engine.rows import LARGEST, Plan, Rejected, Rows, load
from tasks.engine.scoring import category_levels, numeric_values
from tasks.engine.split import TRAIN

EXAMPLES = 3


@dataclass(frozen=True)
class PassSummary:
    """Of some batches: vectors are in the order of the plan's numeric, or category, features.

    `beside` are the target's moments over the rows where each numeric feature is there, and
    `with_target` its co-moment with the target over the same rows. `sample` is where the sampled
    training rows are, `aside` the parts with the rows that were set aside, `digests` those of the
    row groups where they were asked for.
    """

    seen: int
    missing: Float64
    numbers: Moments
    beside: Moments
    with_target: Float64
    categories: tuple[Counter[str], ...]
    target: Moments
    weighted: tuple[float, float]
    max_weight: float
    sample: tuple[Slice, ...]
    reasons: Counter[str]
    examples: tuple[str, ...]
    aside: tuple[str, ...]
    digests: tuple[str, ...]


def merged(summaries: Sequence[PassSummary]) -> PassSummary:
    """Of all their rows, merged from left to right: of batches to a file, of files to a table."""
    first, *others = summaries
    numbers, beside, target = first.numbers, first.beside, first.target
    with_target, weighted = first.with_target, first.weighted
    for other in others:
        shift = (other.numbers.mean - numbers.mean) * (other.beside.mean - beside.mean)
        both = numbers.count + other.numbers.count
        products = numbers.count * other.numbers.count
        share = np.divide(products, both, out=np.zeros_like(both), where=both > 0)
        with_target = with_target + other.with_target + shift * share
        numbers = numbers.merge(other.numbers)
        beside = beside.merge(other.beside)
        target = target.merge(other.target)
        weighted = _mean_of_both(weighted, other.weighted)
    return PassSummary(
        seen=sum(summary.seen for summary in summaries),
        missing=np.sum([summary.missing for summary in summaries], axis=0),
        numbers=numbers,
        beside=beside,
        with_target=with_target,
        categories=tuple(
            _counted([summary.categories[i] for summary in summaries])
            for i in range(len(first.categories))
        ),
        target=target,
        weighted=weighted,
        max_weight=max(summary.max_weight for summary in summaries),
        sample=tuple(part for summary in summaries for part in summary.sample),
        reasons=_counted([summary.reasons for summary in summaries]),
        examples=tuple(text for summary in summaries for text in summary.examples)[:EXAMPLES],
        aside=tuple(uri for summary in summaries for uri in summary.aside),
        digests=tuple(digest for summary in summaries for digest in summary.digests),
    )


def _mean_of_both(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Weights and weighted means of two sets of rows, together."""
    both = one[0] + other[0]
    return both, one[1] + (other[1] - one[1]) * (other[0] / both) if both else 0.0


def _counted(counters: Sequence[Counter[str]]) -> Counter[str]:
    together: Counter[str] = Counter()
    for counter in counters:
        together.update(counter)
    return together


@dataclass(frozen=True)
class Pass:
    """What a worker needs to know for the pass; of a batch it gives each file's summary.

    Rejected rows go to `rejected_folder` (a part for each file and batch that has any), sampled
    ones to `sample_folder`: raw features, then the number in [0, 1) by which they were drawn.
    """

    plan: Plan
    max_categories: int
    sample_share: float
    sample_folder: str
    rejected_folder: str
    device: Device = "cpu"

    def __call__(self, batch: Batch, undigested: frozenset[str]) -> list[PassSummary]:
        """The content digests of the files `undigested` (by URI) are taken on the way."""
        rows = load(batch, self.plan, self.device)
        train = rows.side == TRAIN
        files = by_file(batch)
        ends = np.cumsum([rows_in(groups) for groups in files])
        found = [
            _FileRows.of(rows, train, slice(*bounds))
            for bounds in pairwise([0, *np.searchsorted(rows.places, ends).tolist()])
        ]
        for feature in self.plan.features:
            series = rows.frame[feature.name]
            if feature.kind == "category":
                codes, texts = category_levels(series)
                for file in found:
                    file.see_category(codes, texts)
                    check_categories(feature.name, file.categories[-1], self.max_categories)
                continue
            values = numeric_values(series, feature.kind)
            has_missing = _check_range(feature.name, values, rows)
            for file in found:
                file.see_number(values, has_missing)
        return [
            self._summary(groups, file, rejected, sample, groups[0].uri in undigested)
            for groups, file, rejected, sample in zip(
                files,
                found,
                _rejected_of(rows.rejected, ends),
                self._sample(rows, train, found),
                strict=True,
            )
        ]

    def _summary(
        self,
        groups: Batch,
        file: "_FileRows",
        rejected: Rejected | None,
        sample: tuple[Slice, ...],
        is_undigested: bool,
    ) -> PassSummary:
        target, weight = file.target[file.places], file.weight
        total = float(weight.sum())
        return PassSummary(
            seen=rows_in(groups),
            missing=np.array(file.missing, dtype=np.float64),
            numbers=Moments.joined(file.numbers),
            beside=Moments.joined(file.beside),
            with_target=np.array(file.with_target, dtype=np.float64),
            categories=tuple(file.categories),
            target=Moments.of([file.target[file.side == side] for side in range(len(SIDES))]),
            weighted=(total, float((weight * target).sum() / total) if total else 0.0),
            max_weight=float(weight.max()) if len(weight) else 0.0,
            sample=sample,
            reasons=Counter(rejected.reasons if rejected else ()),
            examples=_examples(rejected, groups, self.plan) if rejected else (),
            aside=(self._set_aside(rejected, groups),) if rejected else (),
            digests=tuple(content_digests(groups)) if is_undigested else (),
        )

    def _sample(
        self, rows: Rows, train: npt.NDArray[np.bool_], files: "Sequence[_FileRows]"
    ) -> list[tuple[Slice, ...]]:
        """Where the sample of each file is."""
        drawn = uniform(rows.position, stream("sample", 0))
        chosen = train & (drawn < self.sample_share)
        names = self.plan.names
        frame = on_host(rows.frame.loc[chosen, names])
        # no feature's name, whatever they are called
        table = pa.Table.from_pandas(frame, preserve_index=False).append_column(
            "_" * (1 + max(map(len, names))), pa.array(on_host(drawn[chosen]))
        )
        counts = [int(chosen[file.rows].sum()) for file in files]
        return write_slices(self.sample_folder, table, counts)

    def _set_aside(self, rejected: Rejected, groups: Batch) -> str:
        path = groups[0].path
        numbers = rejected.places + groups[0].start + 1
        frame = rejected.frame.assign(_file=path, _row=numbers, _reason=rejected.reasons)
        uri = f"{self.rejected_folder}/{digest_of(path)}-{groups[0].index:06d}.parquet"
        write_part(uri, frame)
        return uri


@dataclass
class _FileRows:
    """A file's part of a batch's usable rows, `rows` of them, and what is found feature by feature.

    `target` and `side` are of these rows, `weight` of those that train, which are `places` of them.
    """

    rows: slice
    target: Float64
    side: npt.NDArray[np.int8]
    train: npt.NDArray[np.bool_]
    places: npt.NDArray[np.intp]
    of_target: Deviations
    weight: Float64
    missing: list[int] = field(default_factory=list)
    numbers: list[OneColumn] = field(default_factory=list)
    beside: list[OneColumn] = field(default_factory=list)
    with_target: list[float] = field(default_factory=list)
    categories: list[Counter[str]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Rows, train: npt.NDArray[np.bool_], part: slice) -> "_FileRows":
        target, train = rows.target[part], train[part]
        places = np.flatnonzero(train)
        picked = target[places]
        weight = np.ones_like(picked) if rows.weight is None else rows.weight[part][places]
        of_target = Deviations.of(picked)
        return cls(part, target, rows.side[part], train, places, of_target, weight)

    def see_number(self, values: Float64, has_missing: bool) -> None:
        """`values` are of all of the batch."""
        values, beside = values[self.rows], self.of_target
        missing = int(np.isnan(values).sum()) if has_missing else 0
        picked = values[self.places]
        if missing:
            present = ~np.isnan(picked)
            picked, beside = picked[present], Deviations.of(self.target[self.places][present])
        column = Deviations.of(picked)
        self.missing.append(missing)
        self.with_target.append(column.with_other(beside))
        self.numbers.append(column.moments)
        self.beside.append(beside.moments)

    def see_category(self, codes: npt.NDArray[np.intp], texts: Sequence[str]) -> None:
        """Training rows by category, and all rows in which it is missing; of all of the batch are
        `codes`, places in `texts`.
        """
        codes = codes[self.rows]
        known = codes[self.train & (codes >= 0)]
        counted: Counter[str] = Counter()
        if len(known):  # CuPy counts nothing of nothing, and raises
            counts = on_host(np.bincount(known, minlength=len(texts)))
            for place in np.flatnonzero(counts).tolist():
                counted[texts[place]] += int(counts[place])
        self.categories.append(counted)
        self.missing.append(int((codes < 0).sum()))


def _rejected_of(rejected: Rejected | None, ends: npt.NDArray[np.int64]) -> list[Rejected | None]:
    """Of each file of a batch, which end at the rows `ends` of it; places are then in the file."""
    if rejected is None:
        return [None] * len(ends)
    bounds = pairwise([0, *np.searchsorted(rejected.places, ends).tolist()])
    return [
        Rejected(
            rejected.frame.iloc[first:last],
            rejected.places[first:last] - start,
            rejected.reasons[first:last],
        )
        if last > first
        else None
        for (first, last), start in zip(bounds, [0, *ends.tolist()][:-1], strict=True)
    ]


def _examples(rejected: Rejected, groups: Batch, plan: Plan) -> tuple[str, ...]:
    found = []
    for i in range(min(EXAMPLES, len(rejected.reasons))):
        path, number = place_in(groups, int(rejected.places[i]))
        shown = _shown(rejected.frame.iloc[i], plan)
        found.append(f"row {number:,} of {path}: {rejected.reasons[i]} ({shown})")
    return tuple(found)


def check_categories(name: str, counts: Counter[str], limit: int) -> None:
    """Raises UserError for a column of more than `limit` categories."""
    if len(counts) > limit:
        raise UserError(
            f"The column {name!r} has more than {limit:,} categories (data.max_categories). Leave "
            "it out with data.exclude if it names rows, or raise the limit."
        )


def _check_range(name: str, values: Float64, rows: Rows) -> bool:
    """Whether any value is missing. Raises UserError for one that float32 can't hold."""
    if not len(values):
        return False
    low, high = values.min(), values.max()
    if low >= -LARGEST and high <= LARGEST:  # neither holds where any is missing
        return False
    with np.errstate(invalid="ignore"):
        wrong = np.abs(values) > LARGEST
    if wrong.any():
        row = int(np.argmax(wrong))
        plain = name if name.isidentifier() else f"`{name}`"
        rule = f"{plain} < 1e30" if values[row] > 0 else f"{plain} > -1e30"
        path, number = place_in(rows.batch, int(rows.places[row]))
        raise UserError(
            f"The column {name!r} holds {float(values[row])} in row {number:,} of "
            f"{path}: features are finite numbers within ±{LARGEST:.2g}. Make such values "
            f'missing, or set their rows aside with a rule such as "{rule}" and data.max_rejected.'
        )
    return True


def _shown(row: "pd.Series[Any]", plan: Plan) -> str:
    """A few of a row's values, first those that rules read."""
    first = [*(column.name for column in plan.rule_columns), plan.target.name]
    names = list(dict.fromkeys([*first, *row.index]))
    shown = {name: "missing" if pd.isna(row[name]) else row[name] for name in names[:4]}
    values = ", ".join(f"{name}={value}" for name, value in shown.items())
    return f"{values}, …" if len(names) > 4 else values

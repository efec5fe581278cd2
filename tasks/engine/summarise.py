"""What a worker finds in one batch of row groups, and how two such findings become one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from tasks.engine.errors import UserError
from tasks.engine.fold import Batch, Bundle
from tasks.engine.frames import Device, content_digests, on_host
from tasks.engine.hashing import stream, uniform
from tasks.engine.home import digest_of
from tasks.engine.moments import Deviations, Float64, Moments
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
    """What a worker needs to know for the pass; of a bundle it gives each batch's summary.

    Rejected rows go to `rejected_folder` (a part for each batch that has any), sampled ones to
    `sample_folder`: raw features, then the number in [0, 1) by which they were drawn.
    """

    plan: Plan
    max_categories: int
    sample_share: float
    sample_folder: str
    rejected_folder: str
    device: Device = "cpu"

    def __call__(self, bundle: Bundle, undigested: frozenset[str]) -> list[PassSummary]:
        """The content digests of the files `undigested` (by URI) are taken on the way."""
        read = [self._read(batch, batch[0].uri in undigested) for batch in bundle]
        slices = write_slices(self.sample_folder, [sample for _, sample in read])
        return [
            PassSummary(**{**vars(summary), "sample": sample})
            for (summary, _), sample in zip(read, slices, strict=True)
        ]

    def _read(self, batch: Batch, is_undigested: bool) -> tuple[PassSummary, pa.Table]:
        """The summary and the sample, which is written with that of other batches."""
        rows = load(batch, self.plan, self.device)
        train = rows.side == TRAIN
        places = np.flatnonzero(train)
        missing, numbers, beside, with_target = [], [], [], []
        categories = []
        target = rows.target[places]
        of_target = Deviations.of(target)
        for feature in self.plan.features:
            series = rows.frame[feature.name]
            if feature.kind == "category":
                counted, absent = _category_counts(series, train)
                check_categories(feature.name, counted, self.max_categories)
                categories.append(counted)
                missing.append(absent)
                continue
            values = numeric_values(series, feature.kind)
            missing.append(_check_range(feature.name, values, rows))
            picked, target_beside = values[places], of_target
            if missing[-1]:
                present = ~np.isnan(picked)
                picked, target_beside = picked[present], Deviations.of(target[present])
            column = Deviations.of(picked)
            with_target.append(column.with_other(target_beside))
            numbers.append(column.moments)
            beside.append(target_beside.moments)
        weight = rows.weight[train] if rows.weight is not None else np.ones_like(target)
        total = float(weight.sum())
        rejected = rows.rejected
        found = PassSummary(
            seen=len(rows.target) + (len(rejected.reasons) if rejected else 0),
            missing=np.array(missing, dtype=np.float64),
            numbers=Moments.joined(numbers),
            beside=Moments.joined(beside),
            with_target=np.array(with_target, dtype=np.float64),
            categories=tuple(categories),
            target=Moments.of([rows.target[rows.side == side] for side in range(len(SIDES))]),
            weighted=(total, float((weight * target).sum() / total) if total else 0.0),
            max_weight=float(weight.max()) if len(weight) else 0.0,
            sample=(),
            reasons=Counter(rejected.reasons if rejected else ()),
            examples=_examples(rejected, rows.path, self.plan) if rejected else (),
            aside=(self._set_aside(rejected, batch),) if rejected else (),
            digests=tuple(content_digests(batch)) if is_undigested else (),
        )
        return found, self._sample(rows, train)

    def _sample(self, rows: Rows, train: npt.NDArray[np.bool_]) -> pa.Table:
        drawn = uniform(rows.position, stream("sample", 0))
        chosen = train & (drawn < self.sample_share)
        names = self.plan.names
        frame = on_host(rows.frame.loc[chosen, names])
        table = pa.Table.from_pandas(frame, preserve_index=False)
        # no feature's name, whatever they are called
        return table.append_column(
            "_" * (1 + max(map(len, names))), pa.array(on_host(drawn[chosen]))
        )

    def _set_aside(self, rejected: Rejected, batch: Batch) -> str:
        path = batch[0].path
        frame = rejected.frame.assign(_file=path, _row=rejected.rows, _reason=rejected.reasons)
        uri = f"{self.rejected_folder}/{digest_of(path)}-{batch[0].index:06d}.parquet"
        write_part(uri, frame)
        return uri


def _examples(rejected: Rejected, path: str, plan: Plan) -> tuple[str, ...]:
    return tuple(
        f"row {rejected.rows[i]:,} of {path}: {rejected.reasons[i]} "
        f"({_shown(rejected.frame.iloc[i], plan)})"
        for i in range(min(EXAMPLES, len(rejected.reasons)))
    )


def _category_counts(series: pd.Series, train: npt.NDArray[np.bool_]) -> tuple[Counter[str], int]:
    """Training rows by category, and all rows in which it is missing."""
    codes, texts = category_levels(series)
    known = codes[train & (codes >= 0)]
    # CuPy counts nothing of nothing, and raises
    counts = on_host(np.bincount(known, minlength=len(texts))) if len(known) else [0] * len(texts)
    counted: Counter[str] = Counter()
    for text, count in zip(texts, counts, strict=True):
        if count:
            counted[text] += int(count)
    return counted, int((codes < 0).sum())


def check_categories(name: str, counts: Counter[str], limit: int) -> None:
    """Raises UserError for a column of more than `limit` categories."""
    if len(counts) > limit:
        raise UserError(
            f"The column {name!r} has more than {limit:,} categories (data.max_categories). Leave "
            "it out with data.exclude if it names rows, or raise the limit."
        )


def _check_range(name: str, values: Float64, rows: Rows) -> int:
    """How many values are missing. Raises UserError for one that float32 can't hold."""
    if not len(values):
        return 0
    low, high = values.min(), values.max()
    if low >= -LARGEST and high <= LARGEST:  # neither holds where any is missing
        return 0
    with np.errstate(invalid="ignore"):
        wrong = np.abs(values) > LARGEST
    if wrong.any():
        row = int(np.argmax(wrong))
        plain = name if name.isidentifier() else f"`{name}`"
        rule = f"{plain} < 1e30" if values[row] > 0 else f"{plain} > -1e30"
        raise UserError(
            f"The column {name!r} holds {float(values[row])} in row {rows.numbers[row]:,} of "
            f"{rows.path}: features are finite numbers within ±{LARGEST:.2g}. Make such values "
            f'missing, or set their rows aside with a rule such as "{rule}" and data.max_rejected.'
        )
    return int(np.isnan(values).sum())


def _shown(row: "pd.Series[Any]", plan: Plan) -> str:
    """A few of a row's values, first those that rules read."""
    first = [*(column.name for column in plan.rule_columns), plan.target.name]
    names = list(dict.fromkeys([*first, *row.index]))
    shown = {name: "missing" if pd.isna(row[name]) else row[name] for name in names[:4]}
    values = ", ".join(f"{name}={value}" for name, value in shown.items())
    return f"{values}, …" if len(names) > 4 else values

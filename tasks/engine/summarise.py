"""What a worker finds in one batch of row groups, and how two such findings become one."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.engine.dataset import RowGroup
from tasks.engine.errors import UserError
from tasks.engine.frames import content_digests
from tasks.engine.hashing import stream, uniform
from tasks.engine.home import digest_of
from tasks.engine.moments import Float64, Moments
from tasks.engine.parts import write_part
from tasks.engine.report import SIDES
from tasks.engine.rows import LARGEST, Plan, Rejected, Rows, load
from tasks.engine.scoring import category_levels, numeric_values
from tasks.engine.split import TRAIN


@dataclass(frozen=True)
class PassSummary:
    """Of some batches: vectors are in the order of the plan's numeric, or category, features.

    `beside` are the target's moments over the rows where each numeric feature is there, and
    `with_target` its co-moment with the target over the same rows.
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
    sample: tuple[str, ...]
    reasons: Counter[str]
    examples: tuple[str, ...]
    digests: tuple[tuple[str, str], ...]

    def merge(self, other: "PassSummary") -> "PassSummary":
        weight, mean = self.weighted
        more, other_mean = other.weighted
        both = weight + more
        numbers = self.numbers.merge(other.numbers)
        share = np.divide(
            self.numbers.count * other.numbers.count,
            numbers.count,
            out=np.zeros_like(numbers.count),
            where=numbers.count > 0,
        )
        shift = (other.numbers.mean - self.numbers.mean) * (other.beside.mean - self.beside.mean)
        return PassSummary(
            seen=self.seen + other.seen,
            missing=self.missing + other.missing,
            numbers=numbers,
            beside=self.beside.merge(other.beside),
            with_target=self.with_target + other.with_target + shift * share,
            categories=tuple(a + b for a, b in zip(self.categories, other.categories, strict=True)),
            target=self.target.merge(other.target),
            weighted=(both, mean + (other_mean - mean) * (more / both) if both else 0.0),
            max_weight=max(self.max_weight, other.max_weight),
            sample=self.sample + other.sample,
            reasons=self.reasons + other.reasons,
            examples=(self.examples + other.examples)[:3],
            digests=self.digests + other.digests,
        )


@dataclass(frozen=True)
class Pass:
    """What a worker needs to know for the pass; called with a batch it gives its summary."""

    plan: Plan
    max_categories: int
    sample_share: float
    sample_folder: str
    rejected_folder: str
    undigested: frozenset[str]

    def __call__(self, batch: tuple[RowGroup, ...]) -> PassSummary:
        rows = load(batch, self.plan)
        train = rows.side == TRAIN
        name = f"{digest_of(batch[0].path)}-{batch[0].index:06d}.parquet"
        numbers, targets, missing = [], [], []
        categories = []
        target = rows.target[train]
        for feature in self.plan.features:
            series = rows.frame[feature.name]
            if feature.kind == "category":
                counted, absent = _category_counts(series, train)
                _check_categories(feature.name, counted, self.max_categories)
                categories.append(counted)
                missing.append(absent)
                continue
            values = numeric_values(series, feature.kind)
            absent_rows = np.isnan(values)
            missing.append(int(absent_rows.sum()))
            _check_range(feature.name, values, rows)
            numbers.append(values[train & ~absent_rows] if missing[-1] else values[train])
            targets.append(target[~absent_rows[train]] if missing[-1] else target)
        weight = rows.weight[train] if rows.weight is not None else np.ones(len(target))
        total = float(weight.sum())
        rejected = rows.rejected
        moments, beside = Moments.of(numbers), Moments.of(targets)
        return PassSummary(
            seen=len(rows.target) + (len(rejected.reasons) if rejected else 0),
            missing=np.array(missing, dtype=np.float64),
            numbers=moments,
            beside=beside,
            with_target=np.array(
                [
                    float(np.dot(values - mean, beside_values - beside_mean))
                    for values, mean, beside_values, beside_mean in zip(
                        numbers, moments.mean, targets, beside.mean, strict=True
                    )
                ],
                dtype=np.float64,
            ),
            categories=tuple(categories),
            target=Moments.of([rows.target[rows.side == side] for side in range(len(SIDES))]),
            weighted=(total, float((weight * target).sum() / total) if total else 0.0),
            max_weight=float(weight.max(initial=0.0)),
            sample=self._sample(rows, train, name),
            reasons=Counter(rejected.reasons if rejected else ()),
            examples=self._set_aside(rejected, rows.path, name) if rejected else (),
            digests=tuple(
                (batch[0].uri, digest)
                for digest in (content_digests(batch) if batch[0].uri in self.undigested else ())
            ),
        )

    def _sample(self, rows: Rows, train: npt.NDArray[np.bool_], name: str) -> tuple[str, ...]:
        chosen = train & (uniform(rows.position, stream("sample", 0)) < self.sample_share)
        if not chosen.any():
            return ()
        uri = f"{self.sample_folder}/{name}"
        write_part(uri, rows.frame.loc[chosen, self.plan.names])
        return (uri,)

    def _set_aside(self, rejected: Rejected, path: str, name: str) -> tuple[str, ...]:
        frame = rejected.frame.assign(_file=path, _row=rejected.rows, _reason=rejected.reasons)
        write_part(f"{self.rejected_folder}/{name}", frame)
        return tuple(
            f"row {rejected.rows[i]:,} of {path}: {rejected.reasons[i]} "
            f"({_shown(rejected.frame.iloc[i], self.plan)})"
            for i in range(min(3, len(rejected.reasons)))
        )


def _category_counts(series: pd.Series, train: npt.NDArray[np.bool_]) -> tuple[Counter[str], int]:
    """Training rows by category, and all rows in which it is missing."""
    codes, texts = category_levels(series)
    counts = np.bincount(codes[train & (codes >= 0)], minlength=len(texts))
    counted: Counter[str] = Counter()
    for text, count in zip(texts, counts, strict=True):
        if count:
            counted[text] += int(count)
    return counted, int((codes < 0).sum())


def _check_categories(name: str, counts: Counter[str], limit: int) -> None:
    if len(counts) > limit:
        raise UserError(
            f"The column {name!r} has more than {limit:,} categories (data.max_categories). Leave "
            "it out with data.exclude if it names rows, or raise the limit."
        )


def _check_range(name: str, values: Float64, rows: Rows) -> None:
    with np.errstate(invalid="ignore"):
        wrong = np.abs(values) > LARGEST
    if wrong.any():
        row = int(np.argmax(wrong))
        plain = name if name.isidentifier() else f"`{name}`"
        rule = f"{plain} < 1e30" if values[row] > 0 else f"{plain} > -1e30"
        raise UserError(
            f"The column {name!r} holds {values[row]} in row {rows.numbers[row]:,} of {rows.path}: "
            f"features are finite numbers within ±{LARGEST:.2g}. Make such values missing, or set "
            f'their rows aside with a rule such as "{rule}" and data.max_rejected.'
        )


def _shown(row: "pd.Series[Any]", plan: Plan) -> str:
    """A few of a row's values, first those that rules read."""
    first = [*(column.name for column in plan.rule_columns), plan.target.name]
    names = list(dict.fromkeys([*first, *row.index]))
    values = ", ".join(f"{name}={row[name]}" for name in names[:4])
    return f"{values}, …" if len(names) > 4 else values

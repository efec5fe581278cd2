"""One pass over the row groups: what the table holds, what the scaler and the boosting need.

The pass counts, takes moments and categories of the training rows, draws the sample for the
reference cuts, sets unusable rows aside and digests the files, all at once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.engine.config import Config
from tasks.engine.dataset import Dataset, Frozen, RowGroup
from tasks.engine.digests import remember
from tasks.engine.errors import UserError
from tasks.engine.fold import fold
from tasks.engine.frames import content_digests
from tasks.engine.hashing import stream, uniform
from tasks.engine.home import Home, digest_of
from tasks.engine.moments import Moments
from tasks.engine.parts import write_part
from tasks.engine.report import SIDES, Side
from tasks.engine.rows import LARGEST, Plan, Rejected, Rows, load
from tasks.engine.scaler import encoder_of
from tasks.engine.scoring import Encoder, category_levels, numeric_values
from tasks.engine.split import TRAIN

FORMAT = 1
SAMPLE_ROWS = 200_000
SAMPLE_BYTES = 256 * 1024 * 1024
LEAKAGE_CORRELATION = 0.9999
MOST_FREQUENT = 20

Float64 = npt.NDArray[np.float64]


class ColumnProfile(Frozen):
    """A feature: `rows` and `missing` of all usable rows, the rest of the training rows.

    Numbers carry `low`, `high`, `mean` and `deviation` (of the population) and the correlation
    with the target; categories their count and the most frequent ones. Undefined is None.
    """

    name: str
    kind: str
    rows: int
    missing: int
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    deviation: float | None = None
    correlation: float | None = None
    distinct: int | None = None
    most_frequent: tuple[tuple[str, int], ...] = ()


class TargetProfile(Frozen):
    """The target on one side, in its own units; `deviation` is of the population."""

    rows: int
    mean: float
    deviation: float
    low: float
    high: float


class Profile(Frozen):
    """What the pass found. `mean` is the training target's, weighted where there are weights;
    `max_weight` is the largest weight of a training row.

    `sample` are the Parquet parts of the raw sampled training rows, in order.
    """

    dataset_digest: str
    columns: tuple[ColumnProfile, ...]
    target: dict[Side, TargetProfile]
    mean: float
    max_weight: float | None
    encoder: str
    sample: tuple[str, ...]
    rejected: int = 0
    reasons: dict[str, int] = {}
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> int:
        return sum(side.rows for side in self.target.values())

    @property
    def rows(self) -> dict[Side, int]:
        return {side: self.target[side].rows if side in self.target else 0 for side in SIDES}


@dataclass(frozen=True)
class _Summary:
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

    def merge(self, other: "_Summary") -> "_Summary":
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
        return _Summary(
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
class _Pass:
    """What a worker needs to know for the pass; called with a batch it gives its summary."""

    plan: Plan
    max_categories: int
    sample_share: float
    sample_folder: str
    rejected_folder: str
    undigested: frozenset[str]

    def __call__(self, batch: tuple[RowGroup, ...]) -> _Summary:
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
        return _Summary(
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
        frame = rejected.frame.assign(
            **{"_file": path, "_row": rejected.rows, "_reason": rejected.reasons}
        )
        write_part(f"{self.rejected_folder}/{name}", frame)
        return tuple(
            f"row {rejected.rows[i]:,} of {path}: {rejected.reasons[i]} "
            f"({_shown(rejected.frame.iloc[i], self.plan)})"
            for i in range(min(3, len(rejected.reasons)))
        )


def sample_share(rows: int, columns: int) -> float:
    """A power of two, so that a table that grows keeps a subset of the rows it sampled before."""
    wanted = min(SAMPLE_ROWS, max(2_048, SAMPLE_BYTES // (8 * max(1, columns))))
    share = 1.0
    while rows * share > wanted:
        share /= 2
    return share


def take_profile(
    client: Any,
    dataset: Dataset,
    plan: Plan,
    config: Config,
    home: Home,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Dataset, Profile]:
    """The dataset with its digests, and its profile: of an earlier run where nothing has changed.

    `client` is a Dask client, or None to run here.

    Raises:
        UserError: too many rows had to be set aside, a side is empty, a feature is infinite, a
            column has too many categories, all weights are 0.
    """
    share = sample_share(dataset.rows, len(plan.features))
    settings = (FORMAT, plan, config.normalize, config.data.max_rejected, share)
    limits = (config.data.max_categories,)
    if dataset.digest is not None:
        key = digest_of(dataset.digest, *settings, *limits)
        known = home.load(Profile, "profiles", key, "profile.json")
        if known is not None and all(_exists(uri) for uri in known.sample):
            return dataset, known
    listed = digest_of([file.uri + file.modified for file in dataset.files], *settings)
    this_pass = _Pass(
        plan=plan,
        max_categories=config.data.max_categories,
        sample_share=share,
        sample_folder=home.path("profiles", f"sample-{listed}"),
        rejected_folder=home.path("rejected", listed),
        undigested=frozenset(file.uri for file in dataset.files if file.digest is None),
    )
    summary = fold(client, dataset.row_groups(), this_pass, _Summary.merge, on_progress)
    dataset = dataset.with_digests(_file_digests(dataset, summary.digests))
    assert dataset.digest is not None
    _check_rejected(summary, config, this_pass.rejected_folder)
    profile = _profile(summary, plan, dataset, config)
    remember(home, dataset)
    home.save(profile, "profiles", digest_of(dataset.digest, *settings, *limits), "profile.json")
    return dataset, profile


def _profile(summary: _Summary, plan: Plan, dataset: Dataset, config: Config) -> Profile:
    target = {
        side: TargetProfile(
            rows=int(summary.target.count[i]),
            mean=float(summary.target.mean[i]),
            deviation=float(np.sqrt(summary.target.variance[i])),
            low=float(summary.target.low[i]),
            high=float(summary.target.high[i]),
        )
        for i, side in enumerate(SIDES)
        if summary.target.count[i]
    }
    _check_sides(target, config, summary)
    columns = _columns(summary, plan)
    encoder = encoder_of(plan, summary.numbers, summary.categories, config.normalize.kind)
    assert dataset.digest is not None
    return Profile(
        dataset_digest=dataset.digest,
        columns=columns,
        target=target,
        mean=summary.weighted[1],
        max_weight=summary.max_weight if plan.weight else None,
        encoder=encoder.to_json(),
        sample=summary.sample,
        rejected=sum(summary.reasons.values()),
        reasons=dict(summary.reasons),
        notes=_notes(columns, target, plan, summary),
    )


def encoder_from(profile: Profile) -> Encoder:
    return Encoder.from_json(profile.encoder)


def _columns(summary: _Summary, plan: Plan) -> tuple[ColumnProfile, ...]:
    found, number, category = [], 0, 0
    usable = int(summary.target.count.sum())
    for place, feature in enumerate(plan.features):
        common = {
            "name": feature.name,
            "kind": feature.kind,
            "rows": usable,
            "missing": int(summary.missing[place]),
        }
        if feature.kind == "category":
            counts = summary.categories[category]
            category += 1
            top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_FREQUENT]
            found.append(ColumnProfile(**common, distinct=len(counts), most_frequent=tuple(top)))
            continue
        moments, i = summary.numbers, number
        number += 1
        if not moments.count[i]:
            found.append(ColumnProfile(**common))
            continue
        spread = float(np.sqrt(moments.m2[i] * summary.beside.m2[i]))
        found.append(
            ColumnProfile(
                **common,
                low=float(moments.low[i]),
                high=float(moments.high[i]),
                mean=float(moments.mean[i]),
                deviation=float(np.sqrt(moments.variance[i])),
                correlation=float(summary.with_target[i]) / spread if spread else None,
            )
        )
    return tuple(found)


def _notes(
    columns: Sequence[ColumnProfile],
    target: dict[Side, TargetProfile],
    plan: Plan,
    summary: _Summary,
) -> tuple[str, ...]:
    notes = []
    for column in columns:
        single = column.distinct == 1 or (column.low is not None and column.low == column.high)
        if column.missing == column.rows or column.distinct == 0:
            notes.append(f"{column.name!r} has no values at all and can't help the model.")
        elif single:
            notes.append(f"{column.name!r} is constant in the training rows.")
        elif column.correlation is not None and abs(column.correlation) > LEAKAGE_CORRELATION:
            notes.append(
                f"{column.name!r} has a correlation of {column.correlation:.6f} with the target: "
                "does it give the answer away? Leave it out with data.exclude if so."
            )
    if target["train"].deviation == 0:
        notes.append(f"The target {plan.target.name!r} is constant: its R² is undefined.")
    for reason, count in sorted(summary.reasons.items()):
        notes.append(f"{count:,} rows were set aside: {reason}.")
    return tuple(notes)


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
        raise UserError(
            f"The column {name!r} holds {values[row]} in row {rows.numbers[row]:,} of {rows.path}: "
            f"features are finite numbers within ±{LARGEST:.2g}. Make such values missing, or set "
            f'their rows aside with a rule such as "{name} < 1e30" and data.max_rejected.'
        )


def _shown(row: "pd.Series[Any]", plan: Plan) -> str:
    """A few of a row's values, first those that rules read."""
    first = [*(column.name for column in plan.rule_columns), plan.target.name]
    names = list(dict.fromkeys([*first, *row.index]))
    values = ", ".join(f"{name}={row[name]}" for name in names[:4])
    return f"{values}, …" if len(names) > 4 else values


def _check_rejected(summary: _Summary, config: Config, folder: str) -> None:
    rejected = sum(summary.reasons.values())
    if rejected <= config.data.max_rejected * summary.seen:
        return
    reasons = "; ".join(
        f"{count:,} because {reason}" if len(summary.reasons) > 1 else reason
        for reason, count in summary.reasons.most_common()
    )
    examples = "".join(f"\n- {example}" for example in summary.examples)
    raise UserError(
        f"{rejected:,} of {summary.seen:,} rows can't be used ({reasons}), more than "
        f"data.max_rejected={config.data.max_rejected:g} allows.{examples}\n"
        f"All of them are in {folder}. Mend the data, or set data.max_rejected to the share that "
        "may be left out."
    )


def _check_sides(target: dict[Side, TargetProfile], config: Config, summary: _Summary) -> None:
    usable = int(summary.target.count.sum())
    wanted: list[Side] = ["train", "test"]
    if config.split.kind != "column" and (config.split.valid or config.split.valid_from):
        wanted.append("valid")
    if config.boost.early_stopping_rounds:
        wanted.append("valid")
    for side in wanted:
        if side not in target:
            raise UserError(
                f"The split leaves no {side} rows: {usable:,} usable rows with split.kind="
                f"{config.split.kind}, split.valid={config.split.valid:g}, split.test="
                f"{config.split.test:g}. Give it more rows or other shares."
            )
    if target["train"].rows < 2:
        raise UserError(
            f"There is {target['train'].rows} row to train on: a model needs at least 2."
        )
    if summary.weighted[0] <= 0:
        raise UserError(
            f"All weights of the training rows are 0 (data.weight={config.data.weight!r})."
        )


def _file_digests(dataset: Dataset, digests: Sequence[tuple[str, str]]) -> dict[str, str]:
    """One digest for a file from those of its row groups, in their order, and its schema."""
    by_file: dict[str, list[str]] = {file.uri: [] for file in dataset.files}
    for uri, digest in digests:
        by_file[uri].append(digest)
    schema = [(column.name, column.arrow) for column in dataset.columns]
    return {
        uri: blake2b(repr((schema, parts)).encode(), digest_size=16).hexdigest()
        for uri, parts in by_file.items()
    }


def _exists(uri: str) -> bool:
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(uri)
    return bool(filesystem.exists(path))

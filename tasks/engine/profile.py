"""One pass over the row groups: what the table holds, what the scaler and the boosting need.

The pass counts, takes moments and categories of the training rows, draws the sample for the
reference cuts, sets unusable rows aside and digests the files, all at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from tasks.engine.config import Config
from tasks.engine.dataset import Dataset, Frozen
from tasks.engine.errors import UserError
from tasks.engine.frames import Device
from tasks.engine.home import Home, digest_of
from tasks.engine.parts import Slice, joined, present
from tasks.engine.passing import take_pass
from tasks.engine.report import SIDES, Side
from tasks.engine.rows import LARGEST, Plan
from tasks.engine.scaler import encoder_of
from tasks.engine.scoring import Encoder
from tasks.engine.summarise import PassSummary

FORMAT = 3
SAMPLE_ROWS = 200_000
SAMPLE_BYTES = 256 * 1024 * 1024
MOST_TOO_SMALL = 8  # times that a share may be smaller than the training rows alone would have it
LEAKAGE_CORRELATION = 0.9999
LEAKAGE_ROWS = 5  # fewer values lie on a line by chance
MOST_FREQUENT = 20
LEAST_GAIN = 1e-6  # of a split; kRtEps in XGBoost's source


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

    `sample` is where the raw sampled training rows are, in order: those whose last column is
    below `sample_share`, as a part that was kept may hold more.
    """

    dataset_digest: str
    columns: tuple[ColumnProfile, ...]
    target: dict[Side, TargetProfile]
    mean: float
    max_weight: float | None
    encoder: str
    sample: tuple[Slice, ...]
    sample_share: float
    rejected: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> int:
        return sum(side.rows for side in self.target.values())

    @property
    def rows(self) -> dict[Side, int]:
        return {side: self.target[side].rows if side in self.target else 0 for side in SIDES}


def sample_share(rows: int, columns: int) -> float:
    """A power of two, so that a table that grows keeps a subset of the rows it sampled before."""
    wanted = min(SAMPLE_ROWS, max(2_048, SAMPLE_BYTES // (8 * max(1, columns))))
    share = 1.0
    while rows * share > wanted:
        share /= 2
    return share


def _share_for(train_rows: int, share: float, plan: Plan) -> float:
    """The share of the training rows to sample: that of the table's, or a larger one where so small
    a part of them trains that few or none would be drawn.
    """
    wanted = sample_share(train_rows, len(plan.features))
    return wanted if wanted > MOST_TOO_SMALL * share else share


def take_profile(
    client: Any,
    dataset: Dataset,
    plan: Plan,
    config: Config,
    home: Home,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    device: Device = "cpu",
) -> tuple[Dataset, Profile]:
    """The dataset with its digests, and its profile: of an earlier run where nothing has changed.

    `client` is a Dask client, or None to run here; rows are read on the workers' `device`. That
    and the CPU find the same counts, and moments that differ in the last digits.

    Raises:
        UserError: too many rows had to be set aside, a side is empty, a feature is infinite, a
            column has too many categories, all weights are 0.
    """
    share = sample_share(dataset.rows, len(plan.features))
    limits = (config.data.max_rejected, config.data.max_categories)
    settings = (FORMAT, plan, config.normalize, share, device, *limits)
    if dataset.digest is not None:
        known = home.load(Profile, "profiles", digest_of(dataset.digest, *settings), "profile.json")
        if (
            known is not None
            and known.sample_share == _share_for(known.rows["train"], share, plan)
            and len(present(uris := _parts(known.sample))) == len(uris)
        ):
            return dataset, known
    taken = share
    while True:
        dataset, summary, rejected_folder = take_pass(
            client, dataset, plan, config.data, home, taken, on_progress, device
        )
        _check_rejected(summary, config, rejected_folder)
        profile = _profile(summary, plan, dataset, config, taken)
        before, taken = taken, _share_for(profile.rows["train"], share, plan)
        if taken == before:
            break
    key = digest_of(dataset.digest, *settings)
    home.save(profile, "profiles", key, "profile.json")
    return dataset, profile


def _parts(slices: Sequence[Slice]) -> set[str]:
    return {part.uri for part in slices}


def _profile(
    summary: PassSummary, plan: Plan, dataset: Dataset, config: Config, share: float
) -> Profile:
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
    _check_spread(target, plan, summary)
    columns = _columns(summary, plan)
    texts = [column.name for column in dataset.columns if column.kind == "string"]
    encoder = encoder_of(plan, summary.numbers, summary.categories, config.normalize.kind, texts)
    assert dataset.digest is not None
    return Profile(
        dataset_digest=dataset.digest,
        columns=columns,
        target=target,
        mean=summary.weighted[1],
        max_weight=summary.max_weight if plan.weight else None,
        encoder=encoder.to_json(),
        sample=joined(summary.sample),
        sample_share=share,
        rejected=sum(summary.reasons.values()),
        reasons=dict(summary.reasons),
        notes=_notes(columns, target, plan, summary),
    )


def encoder_from(profile: Profile) -> Encoder:
    return Encoder.from_json(profile.encoder)


def _columns(summary: PassSummary, plan: Plan) -> tuple[ColumnProfile, ...]:
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
    summary: PassSummary,
) -> tuple[str, ...]:
    notes = []
    for column in columns:
        single = column.distinct == 1 or (column.low is not None and column.low == column.high)
        if column.missing == column.rows or column.distinct == 0:
            notes.append(f"{column.name!r} has no values at all and can't help the model.")
        elif single:
            notes.append(f"{column.name!r} is constant in the training rows.")
        elif (
            column.correlation is not None
            and abs(column.correlation) > LEAKAGE_CORRELATION
            and column.rows - column.missing >= LEAKAGE_ROWS
        ):
            notes.append(
                f"{column.name!r} has a correlation of {column.correlation:.6f} with the target: "
                "does it give the answer away? Leave it out with data.exclude if so."
            )
    train = target["train"]
    squares = train.rows * train.deviation**2
    if train.low == train.high:
        notes.append(f"The target {plan.target.name!r} is constant: its R² is undefined.")
    elif squares < 1000 * LEAST_GAIN:
        notes.append(
            f"The target {plan.target.name!r} varies so little (squares that add up to "
            f"{squares:.1g}) that hardly a split gains the {LEAST_GAIN:g} that XGBoost asks of it: "
            "multiply it by a constant in the source."
        )
    for reason, count in sorted(summary.reasons.items()):
        rows = "1 row was" if count == 1 else f"{count:,} rows were"
        notes.append(f"{rows} set aside: {reason}.")
    return tuple(notes)


def _check_spread(target: dict[Side, TargetProfile], plan: Plan, summary: PassSummary) -> None:
    """Raises UserError where gradients would overflow: every split would be a chance hit."""
    train = target["train"]
    farthest = max(
        max(side.high - train.mean, train.mean - side.low)
        for name, side in target.items()
        if name != "test"
    )
    weight = summary.max_weight if plan.weight else 1.0
    if train.rows * farthest**2 * max(weight, 1.0) > LARGEST:
        raise UserError(
            f"The target {plan.target.name!r} lies up to {farthest:.2g} from its mean, in "
            f"{train.rows:,} training rows: the sum of such squares is beyond {LARGEST:.2g}, "
            "which XGBoost's 32-bit floats hold. Divide it by a constant in the source."
        )


def _check_rejected(summary: PassSummary, config: Config, folder: str) -> None:
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


def _way_out(config: Config) -> str:
    if config.split.kind == "group":
        return (
            f"Whole groups of {config.split.column!r} (split.column) fall on one side, and there "
            "are too few of them: use a column with more values, another split.seed, or other "
            "shares."
        )
    if config.split.kind == "column":
        return f"Label some in {config.split.column!r} (split.column)."
    return "Give it more rows or other shares."


def _check_sides(target: dict[Side, TargetProfile], config: Config, summary: PassSummary) -> None:
    usable = int(summary.target.count.sum())
    wanted: list[Side] = ["train", "test"]
    if config.split.kind != "column" and (config.split.valid or config.split.valid_from):
        wanted.append("valid")
    if config.boost.early_stopping_rounds:
        wanted.append("valid")
    for side in wanted:
        if side not in target:
            raise UserError(
                f"The split leaves no {side} rows: {usable:,} usable "
                f"row{'' if usable == 1 else 's'} with split.kind={config.split.kind}, "
                f"split.valid={config.split.valid:g}, split.test={config.split.test:g}. "
                f"{_way_out(config)}"
            )
    if target["train"].rows < 2:
        raise UserError(
            f"There is {target['train'].rows} row to train on: a model needs at least 2."
        )
    if summary.weighted[0] <= 0:
        raise UserError(
            f"All weights of the training rows are 0 (data.weight={config.data.weight!r})."
        )

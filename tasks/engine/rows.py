"""Row groups as rows that a model can use: features, target, weight, position and side.

Every pass (profile, training, evaluation) reads through `load`, so all of them see the same rows
on the same side.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.engine.dataset import Batch, Dataset, Frozen, RowGroup, place_in
from tasks.engine.dataset import Kind as ColumnKind
from tasks.engine.errors import UserError
from tasks.engine.frames import Device, on_host, read_frame
from tasks.engine.hashing import UInt64, positions
from tasks.engine.rules import parse_rule
from tasks.engine.scoring import (
    Kind,
    TamperedModelError,
    UnscorableValueError,
    category_levels,
    numeric_values,
)
from tasks.engine.split import NONE, Split

Float64 = npt.NDArray[np.float64]

LARGEST = float(np.finfo(np.float32).max)

_KINDS: dict[ColumnKind, Kind] = {
    "integer": "number",
    "float": "number",
    "boolean": "bool",
    "decimal": "decimal",
    "date": "time",
    "timestamp": "time",
    "duration": "duration",
    "string": "category",
}


class Feature(Frozen):
    """A feature in the model's order, and how its raw column is read."""

    name: str
    kind: Kind


class Plan(Frozen):
    """Which columns of a table are what: all that a worker needs to read rows alike."""

    target: Feature
    features: tuple[Feature, ...]
    split: Split
    weight: Feature | None = None
    by: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    rule_columns: tuple[Feature, ...] = ()
    split_kind: Kind | None = None

    @property
    def names(self) -> list[str]:
        return [feature.name for feature in self.features]

    @property
    def width(self) -> int:
        return len(self.features)

    @property
    def columns(self) -> list[str]:
        """Every column that is read, features first."""
        names = [*self.names, self.target.name, *self.by]
        names += [feature.name for feature in self.rule_columns]
        names += [self.weight.name] if self.weight else []
        names += [self.split.column] if self.split.column else []
        return list(dict.fromkeys(names))


def feature_of(dataset: Dataset, name: str, categorical: bool = False) -> Feature:
    """Raises UserError where the column's type can't be read as a value."""
    column = dataset.column(name)
    kind = "category" if categorical else _KINDS.get(column.kind)
    if kind is None:
        raise UserError(
            f"The column {name!r} holds {column.arrow} values, which a model can't use. Leave it "
            "out with data.exclude, or name the features in data.features."
        )
    return Feature(name=name, kind=kind)


@dataclass(frozen=True)
class Rejected:
    """Rows that were set aside: the raw columns, their places in the batch, why."""

    frame: pd.DataFrame
    places: npt.NDArray[np.int64]
    reasons: list[str]


@dataclass(frozen=True)
class Rows:
    """The n usable rows of a batch; `places` int64 (n,) are their places in it, rising.

    `frame` holds the raw feature and `by` columns, `target` float64 (n,), `weight` float64 (n,)
    or None, `position` uint64 (n,), `side` int8 (n,): 0 train, 1 valid, 2 test.
    """

    batch: Batch
    places: npt.NDArray[np.int64]
    frame: pd.DataFrame
    target: Float64
    weight: Float64 | None
    position: UInt64
    side: npt.NDArray[np.int8]
    rejected: Rejected | None = field(default=None)

    def take(self, mask: npt.NDArray[np.bool_]) -> "Rows":
        """The rows where `mask` (bool, (n,)) is true."""
        return Rows(
            batch=self.batch,
            places=self.places[on_host(mask)],
            frame=self.frame.loc[mask],
            target=self.target[mask],
            weight=None if self.weight is None else self.weight[mask],
            position=self.position[mask],
            side=self.side[mask],
        )


def load(batch: Sequence[RowGroup], plan: Plan, device: Device = "cpu") -> Rows:
    """The usable rows of a batch, in order; the others as `rejected`.

    The frame and arrays are in the memory of `device`, but for `places` and what is rejected.

    Raises:
        UserError: a weight is negative, missing or infinite; a split label is unknown.
    """
    frame = read_frame(batch, plan.columns, device)
    target = numeric_values(frame[plan.target.name], plan.target.kind)
    position = np.concatenate(
        [positions(group.path, group.start, group.rows, like=target) for group in batch]
    )
    side = plan.split.sides(position, _split_column(frame, plan))
    reasons = _reasons(frame, plan, target, side)
    weight = _weights(frame, plan, batch)
    bad = np.zeros_like(target, dtype=bool)
    for _, broken in reasons:
        bad |= broken
    rows = Rows(
        batch=tuple(batch),
        places=np.arange(len(side)),
        frame=frame,
        target=target,
        weight=weight,
        position=position,
        side=side,
    )
    if not bad.any():
        return rows
    first = np.full(len(frame), "", dtype=object)
    for reason, broken in reversed(reasons):
        first[on_host(broken)] = reason
    aside = on_host(bad)
    rejected = Rejected(
        on_host(frame.loc[bad]), np.flatnonzero(aside), [str(reason) for reason in first[aside]]
    )
    kept = rows.take(~bad)
    return Rows(**{**vars(kept), "rejected": rejected})


@contextmanager
def scoring(
    batch: Sequence[RowGroup], places: npt.NDArray[np.int64] | None = None
) -> Iterator[None]:
    """Values that can't become features, told by path and row number; `places` int64 (n,) are those
    in the batch of the rows that are scored, None for all.

    Raises:
        UserError: a column holds values of another kind than in training, or one that is infinite
            once it is scaled to 32 bits.
    """
    try:
        yield
    except UnscorableValueError as error:
        row = error.row if places is None else int(places[error.row])
        path, number = place_in(batch, row)
        raise UserError(
            f"The column {error.column!r} holds {error.value} in row {number:,} of {path}, which "
            "is infinite in 32 bits once it is scaled as the training rows are. "
            "Make such values missing, or set normalize.kind=none."
        ) from None
    except TamperedModelError:
        raise
    except ValueError as error:
        first, last = batch[0].path, batch[-1].path
        files = first if first == last else f"One of {first} to {last}"
        raise UserError(f"{files} does not fit the model: {error}.") from None


def category_text(series: pd.Series) -> npt.NDArray[np.object_]:
    """Categories as canonical text, object (rows,), None where missing; the same at fit and score.

    Whole numbers read the same whether they come as integers or as floats (a missing value turns
    a column of integers into floats).
    """
    codes, texts = category_levels(series)
    found: npt.NDArray[np.object_] = np.array([*texts, None], dtype=object)[on_host(codes)]
    return found


def _split_column(frame: pd.DataFrame, plan: Plan) -> "pd.Series | Float64 | None":
    if plan.split.column is None:
        return None
    series = frame[plan.split.column]
    if plan.split.kind == "time":
        assert plan.split_kind is not None
        return numeric_values(series, plan.split_kind)
    return series


def _reasons(
    frame: pd.DataFrame, plan: Plan, target: Float64, side: npt.NDArray[np.int8]
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Why rows can't be used, the reason that is named first coming first."""
    name = plan.target.name
    missing = np.isnan(target)
    reasons = [
        (f"the target {name!r} is missing", missing),
        (f"the target {name!r} is infinite", np.isinf(target)),
        (
            f"the target {name!r} is beyond ±{LARGEST:.2g}",
            np.isfinite(target) & (np.abs(target) > LARGEST),
        ),
    ]
    if plan.split.column is not None:
        reasons.append((f"the split column {plan.split.column!r} is missing", side == NONE))
    if plan.rules and len(frame):
        values = {
            column.name: category_text(frame[column.name])
            if column.kind == "category"
            else on_host(numeric_values(frame[column.name], column.kind))
            for column in plan.rule_columns
        }
        reasons += [
            (f"breaks {rule!r}", np.asarray(parse_rule(rule).broken(values), like=target))
            for rule in plan.rules
        ]
    return [(reason, broken) for reason, broken in reasons if broken.any()]


def _weights(frame: pd.DataFrame, plan: Plan, batch: Sequence[RowGroup]) -> Float64 | None:
    if plan.weight is None:
        return None
    weight = numeric_values(frame[plan.weight.name], plan.weight.kind)
    with np.errstate(invalid="ignore"):
        wrong = ~((weight >= 0) & (weight <= LARGEST))
    if wrong.any():
        row = int(np.argmax(wrong))
        path, number = place_in(batch, row)
        raise UserError(
            f"The weight column {plan.weight.name!r} (data.weight) holds {float(weight[row])} in "
            f"row {number:,} of {path}. Weights are finite numbers of 0 or more."
        )
    return weight

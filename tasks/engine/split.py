"""Which rows train, which stop training early and which judge the model.

A row's side is decided by itself alone (its position, group, time or label), so it is the same on
any cluster, and files that are appended later move no earlier row (time splits by shares excepted:
their borders are quantiles of the whole table; set split.valid_from and split.test_from for fixed
ones).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.engine.config import SplitConfig
from tasks.engine.dataset import Frozen
from tasks.engine.errors import UserError
from tasks.engine.hashing import UInt64, key, stream, uniform
from tasks.engine.scoring import category_levels

Sides = npt.NDArray[np.int8]

TRAIN, VALID, TEST, NONE = 0, 1, 2, -1

_LABELS = {
    "train": TRAIN, "training": TRAIN, "valid": VALID, "validation": VALID, "val": VALID,
    "dev": VALID, "test": TEST, "testing": TEST,
}  # fmt: skip


class Split(Frozen):
    """A split whose borders are known: seconds since 1970 for time, shares for hash and group."""

    kind: str
    seed: int = 0
    valid: float = 0.0
    test: float = 0.0
    column: str | None = None
    valid_from: float | None = None
    test_from: float | None = None

    def sides(self, position: UInt64, column: Any) -> Sides:
        """Side of each row, int8 (n,): 0 train, 1 valid, 2 test, -1 where `column` is missing.

        `column` is the group or label column, or seconds since 1970 as float64 for time; None
        for hash.

        Raises:
            UserError: a label is none of train, valid and test.
        """
        match self.kind:
            case "hash":
                return self._by_chance(uniform(position, stream("split", self.seed)))
            case "group":
                codes, texts = category_levels(column)
                # the last place is what code -1 (missing) picks
                keys = np.array([*map(key, texts), 0], dtype=np.uint64, like=codes)[codes]
                sides = self._by_chance(uniform(keys, stream("group", self.seed)))
                return np.where(codes < 0, np.int8(NONE), sides)
            case "time":
                sides = np.full_like(column, TRAIN, dtype=np.int8)
                if self.valid_from is not None:
                    sides[column >= self.valid_from] = VALID
                sides[column >= (np.inf if self.test_from is None else self.test_from)] = TEST
                sides[np.isnan(column)] = NONE
                return sides
            case _:
                return self._by_label(column)

    def _by_chance(self, drawn: npt.NDArray[np.float64]) -> Sides:
        sides = np.full_like(drawn, TRAIN, dtype=np.int8)
        sides[drawn < self.test + self.valid] = VALID
        sides[drawn < self.test] = TEST
        return sides

    def _by_label(self, column: Any) -> Sides:
        codes, texts = category_levels(column)
        places = []
        for text in texts:
            side = _LABELS.get(text.strip().casefold())
            if side is None:
                raise UserError(
                    f"The split column {self.column!r} (split.column) holds {text!r}. It takes "
                    "the labels train, valid and test."
                )
            places.append(side)
        return np.array([*places, NONE], dtype=np.int8, like=codes)[codes]


def resolve_split(config: SplitConfig, borders: Sequence[float] = ()) -> Split:
    """The split with its borders: `borders` are the quantiles of `shares_wanted`, for time."""
    if config.kind != "time":
        return Split(
            kind=config.kind,
            seed=config.seed,
            valid=config.valid,
            test=config.test,
            column=config.column,
        )
    if config.test_from is not None:
        test_from: float | None = _seconds(config.test_from)
        valid_from = None if config.valid_from is None else _seconds(config.valid_from)
    else:
        valid_from = borders[0] if config.valid else None
        test_from = borders[-1]
    if valid_from is not None and test_from is not None and valid_from >= test_from:
        raise UserError(
            f"The valid rows (from {_shown(valid_from)}) do not begin before the test rows (from "
            f"{_shown(test_from)}): set split.valid_from before split.test_from, or split.valid=0."
        )
    return Split(kind="time", column=config.column, valid_from=valid_from, test_from=test_from)


def shares_wanted(config: SplitConfig) -> list[float]:
    """Quantiles of the time column that a split by shares needs; none for fixed dates."""
    if config.kind != "time" or config.test_from is not None:
        return []
    return [*([1 - config.test - config.valid] if config.valid else []), 1 - config.test]


def _seconds(value: object) -> float:
    time = pd.Timestamp(value)  # type: ignore[arg-type]
    return float((time if time.tzinfo else time.tz_localize("UTC")).timestamp())


def _shown(seconds: float) -> str:
    return pd.Timestamp(seconds, unit="s", tz="UTC").isoformat()

"""Error sums that add up exactly, and the metrics that follow from them.

Definitions are scikit-learn's (Metrics and scoring: regression metrics), except that a metric
without a meaning, R² of a constant target say, is NaN.
"""

import math
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np

from tasks.engine.exact import Digits, Int64, squares, value
from tasks.engine.hashing import Float64
from tasks.engine.report import Metrics, Slice

# scikit-learn's least |actual| that an error is divided by (mean_absolute_percentage_error).
EPSILON = float(np.finfo(np.float64).eps)
NAN = float("nan")


@dataclass(frozen=True)
class ErrorSums:
    """Sums over `rows` rows, in exact.py's units; share is |x| / max(|actual|, epsilon).

    A deviation is `actual - train mean`, an error `predicted - actual`. A prediction of the
    training mean therefore has the errors `-deviation`.
    """

    rows: int
    deviation: int
    deviation2: int
    deviation_abs: int
    deviation_share: int
    error: int
    error2: int
    error_abs: int
    error_share: int

    def merge(self, other: "ErrorSums") -> "ErrorSums":
        return ErrorSums(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def baseline(self) -> "ErrorSums":
        """The sums of predicting the training mean."""
        return ErrorSums(
            self.rows,
            *(self.deviation, self.deviation2, self.deviation_abs, self.deviation_share),
            *(-self.deviation, self.deviation2, self.deviation_abs, self.deviation_share),
        )


NOTHING = ErrorSums(*[0] * len(fields(ErrorSums)))


class ErrorTerms:
    """What each row adds to the sums, ready to be added up by any grouping of the rows."""

    def __init__(self, actual: Float64, predicted: Float64, train_mean: float) -> None:
        """Finite float64 (n,) each, n below 2^26."""
        self.rows = len(actual)
        divisor = np.maximum(np.abs(actual), EPSILON)
        self._digits: list[tuple[Digits, ...]] = []
        for x in (actual - train_mean, predicted - actual):
            size = np.abs(x)
            terms = ((x,), squares(x), (size,), (size / divisor,))
            self._digits += [tuple(Digits.of(part) for part in parts) for parts in terms]

    def sums(self, group: Int64, groups: int) -> list[ErrorSums]:
        """Sums of each group; `group` is int64 (n,) from 0 to `groups` - 1."""
        rows = np.bincount(group, minlength=groups).tolist()
        columns = []
        for parts in self._digits:
            by_part = [part.sums(group, groups) for part in parts]
            columns.append([sum(same_group) for same_group in zip(*by_part, strict=True)])
        return [ErrorSums(*row) for row in zip(rows, *columns, strict=True)]


def metrics(sums: ErrorSums, features: int, median_absolute_error: float) -> Metrics:
    """The metrics of a model of `features` features (for the adjusted R²); the median is given.

    All are NaN for no rows; R² and explained variance for a constant target; the adjusted R² for
    `features` + 1 rows or fewer.
    """
    n = sums.rows
    if not n:
        return Metrics(
            rows=0,
            r2=NAN,
            adjusted_r2=NAN,
            rmse=NAN,
            mae=NAN,
            median_absolute_error=NAN,
            mape=NAN,
            explained_variance=NAN,
        )
    r2 = _r2(sums)
    spread = _spread(sums.deviation, sums.deviation2, n)
    explained = 1 - _spread(sums.error, sums.error2, n) / spread if spread else None
    adjusted = None
    if r2 is not None and n > features + 1:
        adjusted = 1 - (1 - r2) * Fraction(n - 1, n - features - 1)
    return Metrics(
        rows=n,
        r2=_float(r2),
        adjusted_r2=_float(adjusted),
        rmse=math.sqrt(value(sums.error2) / n),
        mae=float(value(sums.error_abs) / n),
        median_absolute_error=median_absolute_error,
        mape=float(value(sums.error_share) / n),
        explained_variance=_float(explained),
    )


def part_of_rows(column: str, text: str, sums: ErrorSums) -> Slice:
    """The metrics of a part of the rows, at least one; its R² is against the part's own mean."""
    return Slice(
        column=column,
        value=text,
        rows=sums.rows,
        r2=_float(_r2(sums)),
        rmse=math.sqrt(value(sums.error2) / sums.rows),
        mae=float(value(sums.error_abs) / sums.rows),
        bias=float(value(sums.error) / sums.rows),
    )


def _r2(sums: ErrorSums) -> Fraction | None:
    spread = _spread(sums.deviation, sums.deviation2, sums.rows)
    return 1 - value(sums.error2) / spread if spread else None


def _spread(total: int, total2: int, rows: int) -> Fraction:
    """The sum of squares about the mean, without rounding: a constant's is exactly 0."""
    return value(total2) - value(total) ** 2 / rows


def _float(number: Fraction | None) -> float:
    return NAN if number is None else float(number)

"""Counts, means and squared deviations that merge: Chan, Golub and LeVeque's parallel update."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
OneColumn = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Moments:
    """Of k columns at once, each float64 (k,): `m2` is the sum of squared deviations from `mean`.

    `low` and `high` are infinite (and crossed) where `count` is 0.
    """

    count: Float64
    mean: Float64
    m2: Float64
    low: Float64
    high: Float64

    @classmethod
    def of(cls, columns: "list[Float64]") -> "Moments":
        """Of columns without missing values, each float64 (n_i,)."""
        return cls.joined([Deviations.of(column).moments for column in columns])

    @classmethod
    def joined(cls, columns: "Sequence[OneColumn]") -> "Moments":
        """Of columns whose moments are known."""
        return cls(*np.array(columns, dtype=np.float64).reshape(-1, 5).T)

    def merge(self, other: "Moments") -> "Moments":
        """Of both sets of rows together."""
        count = self.count + other.count
        share = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * share,
            self.m2 + other.m2 + np.square(delta) * self.count * share,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    @property
    def variance(self) -> Float64:
        """Of the population (divided by the count), 0 where there are no rows."""
        return np.divide(self.m2, self.count, out=np.zeros_like(self.m2), where=self.count > 0)


@dataclass(frozen=True)
class Deviations:
    """A column without missing values: `values` float64 (n,) are its deviations from the mean,
    `moments` its count, mean, m2, low and high.

    Columns are looked at one after another, each while it is in the processor's cache.
    """

    values: Float64
    moments: OneColumn

    @classmethod
    def of(cls, column: Float64) -> "Deviations":
        if not len(column):
            return cls(column, (0.0, 0.0, 0.0, np.inf, -np.inf))
        mean = float(column.mean())
        values = column - mean
        m2 = float(np.square(values).sum())
        return cls(values, (len(column), mean, m2, float(column.min()), float(column.max())))

    def with_other(self, other: "Deviations") -> float:
        """The co-moment: the sum of the products with those of another column, row by row."""
        return float((self.values * other.values).sum())

"""Counts, means and squared deviations that merge: Chan, Golub and LeVeque's parallel update."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


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
        """Of columns without missing values, each float64 (n_i,); two passes over each."""
        counts = np.array([len(column) for column in columns], dtype=np.float64)
        means = np.array([float(column.mean()) if len(column) else 0.0 for column in columns])
        m2 = np.array(
            [
                float(np.square(column - mean).sum())
                for column, mean in zip(columns, means, strict=True)
            ]
        )
        low = np.array([float(column.min()) if len(column) else np.inf for column in columns])
        high = np.array([float(column.max()) if len(column) else -np.inf for column in columns])
        return cls(counts, means, m2, low, high)

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

"""Sums of float64 without rounding: integers in units of 2^-1126, so order can't matter.

A float64 is mantissa x 2^exponent. Mantissas are cut in two halves and added up by exponent, which
float64 does exactly while a half sum stays below 2^53; the few sums by exponent are then put
together as one Python integer. What is left of rounding lies in the summands themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.engine.hashing import Float64

Int64 = npt.NDArray[np.int64]

# The mantissa's last bit of the least float64 as np.frexp gives it: 2^(-1073 - 53).
UNIT_BITS = 1126
ROWS_LIMIT = 2**26
_LOW_BITS = 26
_LOW = (1 << _LOW_BITS) - 1
# IEEE 754: a sign, 11 bits of exponent, 52 of the mantissa behind its leading one, which numbers of
# exponent 0 lack.
_FRACTION_BITS = 52
_FRACTION = (1 << _FRACTION_BITS) - 1
_EXPONENT = 0x7FF
_BIAS = 1022  # for mantissas from 1/2 to 1
_DENSE_CELLS = 2**20


@dataclass(frozen=True)
class Digits:
    """Finite float64 (n,) as (high x 2^26 + low) x 2^(exponent + lowest - 53), each part (n,).

    `exponent` counts from 0 to `span` - 1.
    """

    high: Float64
    low: Float64
    exponent: Int64
    lowest: int
    span: int

    @classmethod
    def of(cls, values: Float64) -> "Digits":
        """Raises ValueError for 2^26 values or more at once: their sums might round."""
        if len(values) >= ROWS_LIMIT:
            raise ValueError(f"{len(values)} values at once; up to {ROWS_LIMIT - 1} add up exactly")
        # by the bits themselves: NumPy's frexp and ldexp take twice as long
        bits = np.ascontiguousarray(values).view(np.int64)
        exponent = (bits >> _FRACTION_BITS) & _EXPONENT
        mantissa = bits & _FRACTION
        mantissa |= (exponent > 0).astype(np.int64) << _FRACTION_BITS
        high = np.copysign((mantissa >> _LOW_BITS).astype(np.float64), values)
        low = np.copysign((mantissa & _LOW).astype(np.float64), values)
        # the least numbers count from the exponent of those above, without their leading bit
        np.maximum(exponent, 1, out=exponent)
        # A zero's exponent does not widen the span.
        lowest = int(np.min(exponent, where=mantissa != 0, initial=_EXPONENT))
        exponent = np.maximum(exponent - lowest, 0)
        return cls(high, low, exponent, lowest - _BIAS, int(exponent.max(initial=0)) + 1)

    def sums(self, group: Int64, groups: int) -> list[int]:
        """Exact sums of the values of each group, in units of 2^-1126.

        `group` is int64 (n,) from 0 to `groups` - 1.
        """
        cell = group * self.span + self.exponent
        cells = np.arange(groups * self.span)
        if groups * self.span > _DENSE_CELLS:
            cells, cell = np.unique(cell, return_inverse=True)
        high = np.bincount(cell, self.high, len(cells))
        low = np.bincount(cell, self.low, len(cells))
        totals = [0] * groups
        for index in np.flatnonzero((high != 0) | (low != 0)):
            at, exponent = divmod(int(cells[index]), self.span)
            half_sums = (int(high[index]) << _LOW_BITS) + int(low[index])
            totals[at] += half_sums << (exponent + self.lowest - 53 + UNIT_BITS)
        return totals


def value(total: int) -> Fraction:
    """The real number of a sum in units of 2^-1126."""
    return Fraction(total, 1 << UNIT_BITS)


def squares(values: Float64) -> tuple[Float64, Float64]:
    """`values`² (n,) as product and rounding error, whose sum is exact (Dekker, 1971)."""
    product = values * values
    spread = 134217729.0 * values  # 2^27 + 1: Veltkamp's split in halves of 26 bits
    high = spread - (spread - values)
    low = values - high
    return product, ((high * high - product) + 2.0 * high * low) + low * low


def merge_by_key(
    left: dict[Any, Any], right: dict[Any, Any], merge: Callable[[Any, Any], Any]
) -> dict[Any, Any]:
    """Both dictionaries' keys; where both have one, its merged value."""
    merged = dict(left)
    for name, summary in right.items():
        merged[name] = merge(merged[name], summary) if name in merged else summary
    return merged

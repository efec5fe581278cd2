"""How sure the test R² is: the Poisson bootstrap, folded as sums.

Every replicate draws each row w times, w from Poisson(1) by a hash of (seed, replicate, position)
(Chamandy et al., "Estimating uncertainty for massive data streams", 2012): no process needs to see
all rows, and the draw doesn't depend on the cluster. A replicate's R² needs the sums of w, wy, wy²
and we² alone. Values are rounded to multiples of 2^-60 of their largest, and multiples add up
exactly, so neither does the order of the rows matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import factorial

import numpy as np
import numpy.typing as npt

from tasks.engine.exact import Int64
from tasks.engine.hashing import Float64, UInt64, mix, stream
from tasks.engine.report import Interval

# A value is cut in two digits of 30 bits: 2^33 rows, drawn 1 time on average, fit an int64.
DIGIT_BITS = 30
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)
_BLOCK_WEIGHTS = 2**18


def _thresholds() -> list[np.uint16]:
    """16-bit uniforms from the k-th threshold on draw k + 1 times or more; 8 at most."""
    probabilities = [np.exp(-1.0) / factorial(times) for times in range(8)]
    return [np.uint16(round(65536 * total)) for total in np.cumsum(probabilities)]


_THRESHOLDS = _thresholds()


@dataclass(frozen=True)
class Scale:
    """Powers of two no less than any |actual - train mean| and any |error| of the test rows."""

    actual: float
    error: float

    @classmethod
    def over(cls, largest_deviation: float, largest_error: float) -> "Scale":
        return cls(_power_of_two(largest_deviation), _power_of_two(largest_error))


def _power_of_two(largest: float) -> float:
    return float(2.0 ** np.ceil(np.log2(largest))) if largest > 0 else 1.0


@dataclass(frozen=True)
class BootstrapSums:
    """Sums by replicate, int64 (7, replicates): w, then two digits each of wy, wy² and we²."""

    sums: Int64

    def merge(self, other: "BootstrapSums") -> "BootstrapSums":
        return BootstrapSums(self.sums + other.sums)


def bootstrap_sums(
    position: UInt64,
    deviation: Float64,
    error: Float64,
    scale: Scale,
    replicates: int,
    seed: int,
) -> BootstrapSums:
    """Sums over rows of position keys uint64 (n,), `actual - train mean` and error float64 (n,)."""
    y = deviation / scale.actual
    columns = [np.ones_like(y), *_digits(y), *_digits(y * y), *_digits((error / scale.error) ** 2)]
    by_row = np.ascontiguousarray(np.stack(columns))
    total = np.zeros((len(columns), replicates), dtype=np.int64)
    at = 0
    for drawn in _weights(position, replicates, seed):
        block = by_row[:, at : at + len(drawn)] @ drawn
        total += block[:, :replicates].astype(np.int64)
        at += len(drawn)
    return BootstrapSums(total)


def weights(position: UInt64, replicates: int, seed: int) -> npt.NDArray[np.uint8]:
    """Draws uint8 (n, replicates) of rows with position keys uint64 (n,), for looking at them."""
    empty = np.zeros((0, replicates))
    drawn = [
        empty,
        *(block[:, :replicates].copy() for block in _weights(position, replicates, seed)),
    ]
    return np.concatenate(drawn).astype(np.uint8)


def _weights(position: UInt64, replicates: int, seed: int) -> Iterator[Float64]:
    """Draws by blocks of rows, float64 (rows, replicates rounded up to 4), 2 MiB at a time.

    A 64-bit hash gives four replicates their 16-bit uniforms. A yielded block is overwritten by
    the next.
    """
    quads = -(-replicates // 4)
    rows = max(1, _BLOCK_WEIGHTS // (4 * quads))
    keys = mix(stream("bootstrap", seed) + np.arange(1, quads + 1, dtype=np.uint64) * _GOLDEN)
    mixed = mix(position)
    hashed, shifted = np.empty((2, rows, quads), dtype=np.uint64)
    above = np.empty((rows, 4 * quads), dtype=bool)
    times = np.empty((rows, 4 * quads), dtype=np.uint8)
    drawn = np.empty((rows, 4 * quads))
    for start in range(0, len(mixed), rows):
        some = mixed[start : start + rows, np.newaxis]
        n = len(some)
        h, s = hashed[:n], shifted[:n]
        np.bitwise_xor(some, keys, out=h)
        for multiplier in _MULTIPLIERS:
            np.multiply(h, multiplier, out=h)
            np.right_shift(h, _HALF, out=s)
            np.bitwise_xor(h, s, out=h)
        times[:n] = 0
        for threshold in _THRESHOLDS:
            np.greater_equal(h.view(np.uint16), threshold, out=above[:n])
            np.add(times[:n], above[:n].view(np.uint8), out=times[:n])
        drawn[:n] = times[:n]
        yield drawn[:n]


def _digits(values: Float64) -> tuple[Float64, Float64]:
    """Values from -1 to 1 as two whole numbers: value = (high + low x 2^-30) x 2^-30."""
    scaled = np.ldexp(values, DIGIT_BITS)
    high = np.rint(scaled)
    return high, np.rint(np.ldexp(scaled - high, DIGIT_BITS))


def interval(sums: BootstrapSums, scale: Scale, confidence: float) -> Interval | None:
    """The percentile interval of the test R².

    Replicates whose R² is undefined (they drew a single target value) don't count; None where
    none is defined.
    """
    r2 = [found for column in sums.sums.T if (found := _r2(column, scale)) is not None]
    if not r2:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(r2, [tail, 1 - tail])
    return Interval(
        low=float(low), high=float(high), confidence=confidence, replicates=sums.sums.shape[1]
    )


def _r2(column: Int64, scale: Scale) -> float | None:
    w, *digits = (int(part) for part in column)
    y, y2, e2 = ((digits[i] << DIGIT_BITS) + digits[i + 1] for i in (0, 2, 4))
    # The unit of y, y² and e² is 2^-60 of the scale's; w·y² - y² is in units of 2^-120.
    spread = (w * y2 << 2 * DIGIT_BITS) - y * y
    # Where all targets are equal, the rounding of y² leaves up to 2^-52 of its sum.
    if spread <= (w * y2 << 2 * DIGIT_BITS) >> 50:
        return None
    ratio = Fraction(w * e2 << 2 * DIGIT_BITS, spread)
    return 1.0 - float(ratio) * (scale.error / scale.actual) ** 2

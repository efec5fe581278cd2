"""Squared error whose sums of gradients do not depend on their order.

Every gradient is a multiple of one power of two, small enough in number of bits that float64 adds
any 2^29 of them exactly. Rounding the gradient itself does that, in an objective of our own, and so
does a shift of the labels, at no cost, with XGBoost's: see `LabelScale`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.engine.batches import Float32, Float64, UInt64
from tasks.engine.hashing import stream, uniform
from tasks.engine.matrix import BatchIterator
from tasks.engine.spec import BoostSpec


@dataclass(frozen=True)
class LabelScale:
    """Labels as XGBoost sees them: float32(y - mean + `offset`), with base_score = `offset`.

    `binade` is the power of two B >= 4 max|y - mean|. With offset = 1.5 B labels and margins lie
    in [B, 2B), whose float32 are multiples of B 2^-23, and so is every difference of two.
    """

    mean: float
    binade: float
    offset: float

    @classmethod
    def of(cls, spec: BoostSpec) -> "LabelScale":
        binade = 2.0 ** math.ceil(math.log2(max(4 * spec.max_deviation, 2.0**-100)))
        return cls(spec.mean, binade, 0.0 if spec.own_objective else 1.5 * binade)

    def to_label(self, target: Float64) -> Float32:
        return ((target - self.mean) + self.offset).astype(np.float32)


class SquaredError:
    """Squared error with weights and row sampling; gradients float32 (n,) on a grid.

    A row is in round r's sample when hash(seed, r, position) says so; one that is left out has a
    gradient and hessian of zero. `round` is set before each round.
    """

    def __init__(self, spec: BoostSpec, scale: LabelScale, rows: BatchIterator) -> None:
        self.round = 0
        self._share = spec.subsample
        self._seed = spec.seed
        self._position = rows.position
        largest = 1.0
        self._weight: Float64 | None = None
        if spec.max_weight is not None:
            largest = 2.0 ** math.ceil(math.log2(max(spec.max_weight, 2.0**-100)))
            weight = rows.weight
            assert weight is not None, "the batches carry no weights"
            self._weight = on_grid(weight, largest)
        self._gradient_scale = scale.binade * largest
        self._label: Float32 | None = None

    def __call__(self, margin: Float32, matrix: Any) -> tuple[Float32, Float32]:
        # XGBoost gives host arrays: what follows is done where the rows are
        if self._label is None:
            self._label = np.asarray(matrix.get_label(), like=self._position)
        gradient = np.asarray(margin, like=self._position).astype(np.float64) - self._label
        hessian = np.ones_like(gradient)
        if self._weight is not None:
            gradient *= self._weight
            hessian = self._weight
        gradient = on_grid(gradient, self._gradient_scale)
        if self._share < 1:
            taken = sampled(self._position, self._seed, self.round, self._share)
            gradient, hessian = gradient * taken, hessian * taken
        return gradient.astype(np.float32), hessian.astype(np.float32)


def on_grid(values: Float64, scale: float) -> Float64:
    """Rounded to multiples of 2^-22 of `scale` (a power of two): exact sums of up to 2^29."""
    step = scale * 2.0**-22
    return np.rint(values / step) * step


def sampled(position: UInt64, seed: int, round_: int, share: float) -> npt.NDArray[np.bool_]:
    """Bool (n,): the rows that round `round_` (from 0) trains on."""
    return uniform(position, stream(f"subsample:{round_}", seed)) < share

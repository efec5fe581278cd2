"""The RMSE of train and valid rows after each round, over all workers of the group.

XGBoost knows every row's margin after a round and gives it at the price of copies. Its own metric
over them takes ten times as long on a CPU, a tenth of a round, but no memory. The terms of both are
the same; only the order of their sum differs.
"""

from collections.abc import Mapping
from typing import Any, Protocol
from weakref import ref

import numpy as np
from xgboost import collective

from tasks.engine.matrix import Float32, Float64

CHUNK_ROWS = 1 << 16  # stays in the processor's cache
# Of a row: its label, and its margin as XGBoost copies it and as NumPy does.
COPIED_BYTES = 12


class RoundErrors(Protocol):
    """Holds no matrix: those on disk must go before their pages."""

    def evals(self) -> list[tuple[Any, str]]:
        """What `xgboost.train` is to evaluate."""

    def rmse(self, model: Any, evals_log: Any) -> dict[str, float]:
        """After a round, by the name of the matrix; every worker of the group must ask."""


def round_errors(matrices: Mapping[str, Any], *, copies: bool) -> RoundErrors:
    """For binned matrices by name, of any number of rows: quick with copies of labels and margins,
    or without them. All workers of the group must take the same way.
    """
    return _OfMargins(matrices) if copies else _OfXGBoost(matrices)


class _OfXGBoost:
    def __init__(self, matrices: Mapping[str, Any]) -> None:
        self._matrices = {name: ref(matrix) for name, matrix in matrices.items()}

    def evals(self) -> list[tuple[Any, str]]:
        return [(matrix(), name) for name, matrix in self._matrices.items()]

    def rmse(self, model: Any, evals_log: Any) -> dict[str, float]:
        return {name: float(evals_log[name]["rmse"][-1]) for name in self._matrices}


class _OfMargins:
    def __init__(self, matrices: Mapping[str, Any]) -> None:
        self._matrices = {name: ref(matrix) for name, matrix in matrices.items()}
        self._labels: dict[str, Float32] = {
            name: matrix.get_label() for name, matrix in matrices.items()
        }
        self._rows = _over_group([len(label) for label in self._labels.values()])

    def evals(self) -> list[tuple[Any, str]]:
        return []

    def rmse(self, model: Any, evals_log: Any) -> dict[str, float]:
        sums = _over_group([self._squares(model, name) for name in self._labels])
        means = np.sqrt(sums / self._rows)
        return dict(zip(self._labels, means.tolist(), strict=True))

    def _squares(self, model: Any, name: str) -> float:
        label = self._labels[name]
        if not len(label):
            return 0.0
        margin = model.predict(self._matrices[name](), output_margin=True)
        return sum_of_squares(margin, label)


def sum_of_squares(margin: Float32, label: Float32) -> float:
    """Of the differences of two float32 (n,): squares of 32 bits as XGBoost's, sums of 64."""
    total, room = 0.0, np.empty(min(CHUNK_ROWS, len(label)), np.float32)
    for begin in range(0, len(label), CHUNK_ROWS):
        end = min(begin + CHUNK_ROWS, len(label))
        error = room[: end - begin]
        np.subtract(margin[begin:end], label[begin:end], out=error)
        total += float(np.square(error, out=error).sum(dtype=np.float64))
    return total


def _over_group(numbers: list[float]) -> Float64:
    mine = np.array(numbers, dtype=np.float64)
    if collective.get_world_size() == 1:
        return mine
    total: Float64 = collective.allreduce(mine, collective.Op.SUM)
    return total

"""The RMSE of train and valid rows after each round, over all workers of the group.

On a CPU XGBoost's own metric takes ten times as long as a sum over the margins that it keeps, a
tenth of a round. The terms of both are the same; only the order of their sum differs.
"""

import ctypes
import json
import mmap
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol
from weakref import ref

import numpy as np
import xgboost as xgb
from xgboost import collective
from xgboost.libpath import find_lib_path

from tasks.engine.batches import Float32, Float64
from tasks.engine.frames import Device

CHUNK_ROWS = 1 << 16  # stays in the processor's cache
GIVEN_BACK_BYTES = 64 << 20
MARGINS = {
    "type": 1,
    "training": False,
    "iteration_begin": 0,
    "iteration_end": 0,
    "strict_shape": False,
}


class RoundErrors(Protocol):
    """Holds no matrix: those on disk must go before their pages."""

    def evals(self) -> list[tuple[Any, str]]:
        """What `xgboost.train` is to evaluate."""

    def rmse(self, model: Any, evals_log: Any) -> dict[str, float]:
        """After a round, by the name of the matrix; every worker of the group must ask."""


def round_errors(matrices: Mapping[str, Any], device: Device) -> RoundErrors:
    """For binned matrices by name, of any number of rows, in the memory of the `device`."""
    return _OfMargins(matrices) if device == "cpu" else _OfXGBoost(matrices)


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
        self._rows = _over_group([matrix.num_row() for matrix in matrices.values()])

    def evals(self) -> list[tuple[Any, str]]:
        return []

    def rmse(self, model: Any, evals_log: Any) -> dict[str, float]:
        sums = _over_group([_squares(model, matrix()) for matrix in self._matrices.values()])
        means = np.sqrt(sums / self._rows)
        return dict(zip(self._matrices, means.tolist(), strict=True))


def _squares(model: Any, matrix: Any) -> float:
    if not matrix.num_row():
        return 0.0
    margin = _margin(model, matrix)
    squares = sum_of_squares(margin, _label(matrix))
    if margin.nbytes >= GIVEN_BACK_BYTES:
        _give_back(margin)
    return squares


# XGBoost's Python interface copies what its C interface shows: 12 bytes a row.


@cache
def _xgboost() -> ctypes.CDLL:
    """XGBoost's C interface, of the library that its package has loaded."""
    library = ctypes.CDLL(find_lib_path()[0])
    library.XGBGetLastError.restype = ctypes.c_char_p
    return library


def _call(function: Any, *arguments: Any) -> None:
    if function(*arguments):
        raise xgb.core.XGBoostError(_xgboost().XGBGetLastError().decode())


def _margin(model: Any, matrix: Any) -> Float32:
    """XGBoost's margins of the rows of a matrix, float32 (n,); valid until it predicts again."""
    found, shape = ctypes.POINTER(ctypes.c_float)(), ctypes.POINTER(ctypes.c_uint64)()
    _call(
        _xgboost().XGBoosterPredictFromDMatrix,
        model.handle,
        matrix.handle,
        json.dumps(MARGINS).encode(),
        ctypes.byref(shape),
        ctypes.byref(ctypes.c_uint64()),
        ctypes.byref(found),
    )
    return np.ctypeslib.as_array(found, (matrix.num_row(),))


def _give_back(margin: Float32) -> None:
    """Takes the memory from a copy of margins that XGBoost keeps until it is asked again, and then
    writes anew: a tree needs as much for a moment, and would come on top of it.
    """
    if sys.platform != "linux":
        return
    begin = -(-margin.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (margin.ctypes.data + margin.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    # where the system does not do it, the memory is as it was
    _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _label(matrix: Any) -> Float32:
    """The labels in a matrix, float32 (n,); valid as long as the matrix is."""
    found = ctypes.POINTER(ctypes.c_float)()
    _call(
        _xgboost().XGDMatrixGetFloatInfo,
        matrix.handle,
        b"label",
        ctypes.byref(ctypes.c_uint64()),
        ctypes.byref(found),
    )
    return np.ctypeslib.as_array(found, (matrix.num_row(),))


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

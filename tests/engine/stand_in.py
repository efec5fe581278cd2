"""Arrays and frames that stand in for a GPU's, where there is none.

They live by CuPy's manners: no conversion to NumPy but by `get`, no host array beside one of
theirs, and NumPy's functions only by NumPy's own dispatch. So they show that the engine, which is
written once, brings rows to the host only where it says so. `calls` remembers what was called with
arrays; the contract tests make the same calls of the real CuPy.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.mixins import NDArrayOperatorsMixin

from tasks.engine import frames
from tasks.engine.dataset import RowGroup
from tasks.engine.frames import on_host
from tasks.engine.scoring import factorized, float_values, seconds_of

calls: dict[str, tuple[Any, ...]] = {}


def _remember(name: str, args: Any, kwargs: Any) -> None:
    key = repr((name, _kinds(args), _kinds(kwargs)))
    calls.setdefault(key, (name, args, kwargs))


def _kinds(value: Any) -> Any:
    if isinstance(value, Array):
        return f"{value.dtype}[{value.ndim}]"
    if isinstance(value, list | tuple):
        return type(value).__name__, sorted({str(_kinds(each)) for each in value})
    if isinstance(value, dict):
        return {key: _kinds(each) for key, each in value.items()}
    return type(value).__name__


def _host(value: Any) -> Any:
    if isinstance(value, Array):
        return value.get()
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("a host array beside one of a GPU")
    if isinstance(value, list | tuple):
        return type(value)(_host(each) for each in value)
    return value


def _array(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_array(each) for each in value)
    return Array(np.asarray(value))


class Array(NDArrayOperatorsMixin):
    """Some of CuPy's ndarray."""

    def __init__(self, host: np.ndarray) -> None:
        self._host = host

    def get(self) -> np.ndarray:
        return self._host

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        _remember(ufunc.__name__, inputs, kwargs)
        host = {key: _host(value) for key, value in kwargs.items()}
        return _array(ufunc(*(_host(each) for each in inputs), **host))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        _remember(function.__name__, args, kwargs)
        making = function.__name__ in ("asarray", "array")  # the ways to the GPU
        host = {key: _host(value) for key, value in kwargs.items()}
        found = function(*(args if making else (_host(each) for each in args)), **host)
        return _array(found)

    def __getitem__(self, key: Any) -> "Array":
        _remember("getitem", (self, key), {})
        return Array(np.asarray(self._host[_host(key)]))

    def __setitem__(self, key: Any, value: Any) -> None:
        _remember("setitem", (self, key, value), {})
        self._host[_host(key)] = _host(value)

    def __len__(self) -> int:
        return len(self._host)

    def __bool__(self) -> bool:
        return bool(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __int__(self) -> int:
        return int(self._host)

    __index__ = __int__

    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    shape = property(lambda self: self._host.shape)
    nbytes = property(lambda self: self._host.nbytes)

    @property
    def T(self) -> "Array":
        return Array(self._host.T)

    def _method(self, name: str, *args: Any) -> "Array":
        _remember(f".{name}", (self, *args), {})
        return Array(np.asarray(getattr(self._host, name)(*args)))

    def astype(self, dtype: Any) -> "Array":
        return self._method("astype", dtype)

    def sum(self) -> "Array":
        return self._method("sum")

    def mean(self) -> "Array":
        return self._method("mean")

    def min(self) -> "Array":
        return self._method("min")

    def max(self) -> "Array":
        return self._method("max")

    def any(self) -> "Array":
        return self._method("any")


class Series:
    """A column of a frame on a GPU; nothing reads it but what is registered below."""

    def __init__(self, host: pd.Series) -> None:
        self.host, self.name, self.dtype = host, host.name, host.dtype


class Frame:
    """What the engine asks of cuDF's frames."""

    def __init__(self, host: pd.DataFrame) -> None:
        self.host, self.columns = host, host.columns

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, name: str) -> Series:
        return Series(self.host[name])

    @property
    def loc(self) -> "_Rows":
        return _Rows(self.host)

    def items(self) -> Iterator[tuple[Any, Series]]:
        return ((name, Series(column)) for name, column in self.host.items())


class _Rows:
    def __init__(self, host: pd.DataFrame) -> None:
        self._host = host

    def __getitem__(self, key: Any) -> Frame:
        mask, names = key if isinstance(key, tuple) else (key, list(self._host.columns))
        return Frame(self._host.loc[mask.get(), names])


def read(batch: Sequence[RowGroup], columns: Sequence[str]) -> Frame:
    """In place of cuDF's reader."""
    return Frame(frames.read_frame(batch, columns))


@float_values.register  # type: ignore[arg-type]
def _(series: Series, kind: Any) -> Array:
    if kind == "time":
        index = pd.DatetimeIndex(series.host)
        return seconds_of(Array(index.asi8), index.unit, Array(index.isna()))  # type: ignore[arg-type, return-value]
    values = series.host.to_numpy(dtype=np.float64, na_value=math.nan)
    return Array(values.copy())


@factorized.register  # type: ignore[arg-type]
def _(series: Series) -> tuple[Array, Any]:
    codes, values = factorized(series.host)
    return Array(codes), values


on_host.register(Array, Array.get)
on_host.register(Frame, lambda frame: frame.host)

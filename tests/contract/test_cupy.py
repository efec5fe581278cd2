"""The engine's calls of NumPy with a GPU's arrays, made again of the real CuPy.

On a machine without a GPU each must come as far as CUDA itself: a function, an argument or a type
that CuPy does not take fails before.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine import stand_in, test_devices

pytestmark = [pytest.mark.contract, pytest.mark.filterwarnings("default")]


@pytest.fixture
def _calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the engine calls on the rows of each kind of split."""
    from tasks.engine import frames

    monkeypatch.setattr(frames, "_read_cudf", stand_in.read)
    for number, case in enumerate(test_devices.SPLITS):
        (split,) = case.values
        test_devices.test_profile_scaler_and_split_are_the_cpus(tmp_path / f"p{number}", split)
        test_devices.test_batches_are_the_cpus_to_the_last_bit(tmp_path / f"b{number}", split)
    test_devices.test_unseen_categories_are_counted_there(tmp_path / "u")


@pytest.mark.usefixtures("_calls")
def test_cupy_takes_every_call() -> None:
    import cupy
    from cupy_backends.cuda.api.runtime import CUDARuntimeError

    kept: list[np.ndarray] = []

    def real(value: Any) -> Any:
        if isinstance(value, stand_in.Array):
            host = np.ascontiguousarray(value.get())
            kept.append(host)  # the memory that the array shows
            memory = cupy.cuda.UnownedMemory(host.ctypes.data, host.nbytes, host, 0)
            return cupy.ndarray(host.shape, host.dtype, cupy.cuda.MemoryPointer(memory, 0))
        if isinstance(value, list | tuple):
            return type(value)(real(each) for each in value)
        return value

    assert len(stand_in.calls) > 50
    wrong = []
    for name, args, kwargs in stand_in.calls.values():
        call = _call(name, real)
        try:
            call(*real(args), **{key: real(value) for key, value in kwargs.items()})
        except CUDARuntimeError:
            continue
        except Exception as error:  # noqa: BLE001  told below, all of them
            wrong.append(f"{name}{args}{kwargs}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def _call(name: str, real: Callable[[Any], Any]) -> Callable[..., Any]:
    if name == "getitem":
        return lambda array, key: array[key]
    if name == "setitem":
        return lambda array, key, value: array.__setitem__(key, value)
    if name.startswith("."):
        return lambda array, *args: getattr(array, name[1:])(*args)
    function = getattr(np, name)
    if name in ("empty", "array", "asarray", "arange"):
        # made like an array of the GPU's, which the protocol does not hand on
        return lambda *args, **kwargs: function(
            *args, **kwargs, like=real(stand_in.Array(np.zeros(3)))
        )
    return function

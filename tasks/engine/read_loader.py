"""The user's own loader, `module:function`, and the demo table."""

import importlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.engine.config import DataConfig
from tasks.engine.errors import UserError, listing, nearest
from tasks.engine.inputs import Input
from tasks.engine.reading import Reading
from tasks.engine.schema import check_names
from tasks.engine.spool import spooled

_RETURNS = "a pandas DataFrame, an Arrow table or RecordBatchReader, or a Dask DataFrame"
_PIECE = 131_072


def read_loader(source: Input, config: DataConfig) -> Reading:
    """What the function returns, a Dask frame partition by partition.

    Raises:
        UserError: there is no such module or function, it raises, or it returns something else.
    """
    function = _function(config.source)
    try:
        loaded = function()
    except Exception as error:
        raise _raised(config.source, error) from error
    return spooled(source, _tables(config.source, loaded))


def read_demo(source: Input, config: DataConfig) -> Reading:
    """scikit-learn's make_regression: 1000 rows, five features, noise 0.1."""
    from sklearn.datasets import make_regression

    features, target = make_regression(n_samples=1000, n_features=5, noise=0.1, random_state=0)
    columns = {f"feature_{i}": pa.array(features[:, i]) for i in range(features.shape[1])}
    table = pa.table({**columns, "target": pa.array(target)})
    return Reading(table.schema, iter(table.to_batches()))


def _function(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (module_name == error.name or module_name.startswith(error.name)):
            raise _raised(name, error) from error
        raise UserError(
            f"data.source={name!r}: there is no module {module_name!r}. It is looked for in the "
            "current folder and among the installed packages."
        ) from None
    except Exception as error:
        raise _raised(name, error) from error
    function = getattr(module, function_name, None)
    known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    if function is None:
        holds = f" It has: {listing(known)}." if known else ""
        raise UserError(
            f"data.source={name!r}: the module {module_name!r} has no function "
            f"{function_name!r}.{nearest(function_name, known)}{holds}"
        )
    if not callable(function):
        raise UserError(
            f"data.source={name!r}: {function_name!r} is of the type {type(function).__name__}, "
            f"not a function. Name a function without arguments that returns {_RETURNS}."
        )
    return function


def _raised(name: str, error: Exception) -> UserError:
    """The error with the user's own line that raised it."""
    place = ""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        place = f" ({Path(error.filename or '').name}, line {error.lineno})"
        return UserError(f"The loader {name!r} can't be imported: {error.msg}{place}.")
    if frames:
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    text = str(error).rstrip(".")
    return UserError(f"The loader {name!r} raised {type(error).__name__}: {text}{place}.")


def _tables(name: str, loaded: Any) -> Iterator[Any]:
    if isinstance(loaded, pa.RecordBatchReader):
        try:
            for batch in loaded:
                yield pa.Table.from_batches([batch])
        except Exception as error:
            raise _raised(name, error) from error
    elif isinstance(loaded, pa.RecordBatch):
        yield pa.Table.from_batches([loaded])
    elif isinstance(loaded, pa.Table):
        yield from _pieces(loaded)
    elif _is_frame(loaded, "pandas"):
        yield from _pieces(_from_pandas(name, loaded))
    elif _is_frame(loaded, "dask"):
        for number in range(loaded.npartitions):
            try:
                part = loaded.partitions[number].compute(scheduler="synchronous")
            except Exception as error:
                raise _raised(name, error) from error
            yield from _pieces(_from_pandas(name, part))
    else:
        what = "nothing" if loaded is None else f"something of the type {type(loaded).__name__}"
        raise UserError(f"The loader {name!r} returned {what}. It must return {_RETURNS}.")


def _is_frame(loaded: Any, package: str) -> bool:
    """Told by name, so that neither package is imported for it."""
    kinds = [kind for kind in type(loaded).__mro__ if kind.__name__ == "DataFrame"]
    return any(kind.__module__.split(".")[0] == package for kind in kinds)


def _pieces(table: Any) -> Iterator[Any]:
    for start in range(0, max(1, table.num_rows), _PIECE):
        yield table.slice(start, _PIECE)


def _from_pandas(name: str, frame: Any) -> Any:
    names = [str(column) for column in frame.columns]
    check_names(names, f"The table of the loader {name!r}")
    frame = frame.set_axis(names, axis=1)
    try:
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        column, cause = next(_unreadable(frame), ("?", "unknown"))
        raise UserError(
            f"The loader {name!r}: the column {column!r} mixes types or holds what a table can't "
            f"({cause}). Give it one type, say with astype."
        ) from None


def _unreadable(frame: Any) -> Iterator[tuple[str, str]]:
    for column in frame.columns:
        try:
            pa.Array.from_pandas(frame[column])
        except (pa.ArrowException, OverflowError) as error:
            yield column, str(error).rstrip(".")

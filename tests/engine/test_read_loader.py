"""Loaders: functions of the user's own, and what goes wrong in them."""

import sys
from pathlib import Path

import pytest

from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tests.engine.tables import ingested, rows, types


@pytest.fixture
def loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of loaders beside the user's configuration; returns its name."""
    (tmp_path / "my_loaders.py").write_text(
        """
import datetime as dt
from decimal import Decimal
import numpy as np, pandas as pd, pyarrow as pa

value = 5

def frame():
    return pd.DataFrame({"i": pd.array([1, None], "Int64"), "c": pd.Categorical(["x", "y"]),
                         "t": pd.to_datetime(["2026-01-01", None]),
                         "d": pd.to_timedelta([1, 2], unit="s"),
                         "m": [Decimal("1.5"), None], "b": [True, False], "f": [1.5, np.nan]})

def arrow():
    return pa.table({"a": [1, 2], "s": ["x", None]})

def batches():
    table = arrow()
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=1))

def dask():
    import dask.dataframe as dd
    return dd.from_pandas(pd.DataFrame({"a": range(10), "s": list("ababababab")}), npartitions=3)

def partitions():
    import dask.dataframe as dd
    def part(i):
        return pd.DataFrame({"a": [i] if i else [0.5]})
    return dd.from_map(part, [1, 0, 2], meta=pd.DataFrame({"a": [1.0]}))

def nothing():
    pass

def number():
    return 5

def fails():
    raise ValueError("the share is not mounted")

def mixed():
    return pd.DataFrame({"a": [1, "x"]})

def empty():
    return pd.DataFrame({"a": []})

def twice():
    return pd.DataFrame([[1, 2]], columns=["a", "a"])
"""
    )
    (tmp_path / "broken_loader.py").write_text("import nothing_like_this\n")
    (tmp_path / "wrong_loader.py").write_text("def load(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_loaders", "broken_loader", "wrong_loader"):
        sys.modules.pop(name, None)
    return "my_loaders"


def test_loader_of_a_frame(loaders: str, home: Home) -> None:
    dataset = ingested(f"{loaders}:frame", home)
    assert {c.name: c.kind for c in dataset.columns} == {
        "i": "integer",
        "c": "string",
        "t": "timestamp",
        "d": "duration",
        "m": "decimal",
        "b": "boolean",
        "f": "float",
    }
    assert rows(dataset)[1]["i"] is None
    assert dataset.files[0].path == "my_loaders:frame"
    assert ingested(f"{loaders}:frame", home).digest == dataset.digest


@pytest.mark.parametrize("name", ["arrow", "batches"])
def test_loader_of_arrow(name: str, loaders: str, home: Home) -> None:
    assert rows(ingested(f"{loaders}:{name}", home)) == [{"a": 1, "s": "x"}, {"a": 2, "s": None}]


def test_loader_of_a_dask_frame(loaders: str, home: Home) -> None:
    dataset = ingested(f"{loaders}:dask", home, row_group_rows=3)
    assert [row["a"] for row in rows(dataset)] == list(range(10))
    assert dataset.files[0].row_groups == (3, 3, 3, 1)
    mixed = ingested(f"{loaders}:partitions", home)
    assert types(mixed) == {"a": "double"}
    assert [row["a"] for row in rows(mixed)] == [1.0, 0.5, 2.0]


RETURNS = "a pandas DataFrame, an Arrow table or RecordBatchReader, or a Dask DataFrame"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(
            "my_loadrs:frame",
            "data.source='my_loadrs:frame': there is no module 'my_loadrs'. It is looked for in "
            "the current folder and among the installed packages.",
            id="no module",
        ),
        pytest.param(
            "my_loaders:frme",
            "data.source='my_loaders:frme': the module 'my_loaders' has no function 'frme'. Did "
            "you mean 'frame'? It has: Decimal, frame, arrow, batches, dask, partitions, nothing, "
            "number, fails, mixed, empty, twice.",
            id="no function",
        ),
        pytest.param(
            "my_loaders:value",
            "data.source='my_loaders:value': 'value' is of the type int, not a function. Name a "
            f"function without arguments that returns {RETURNS}.",
            id="not a function",
        ),
        pytest.param(
            "my_loaders:fails",
            "The loader 'my_loaders:fails' raised ValueError: the share is not mounted "
            "(my_loaders.py, line 38).",
            id="raises",
        ),
        pytest.param(
            "broken_loader:load",
            "The loader 'broken_loader:load' raised ModuleNotFoundError: No module named "
            "'nothing_like_this' (broken_loader.py, line 1).",
            id="import fails",
        ),
        pytest.param(
            "wrong_loader:load",
            "The loader 'wrong_loader:load' can't be imported: invalid syntax (wrong_loader.py, "
            "line 1).",
            id="syntax error",
        ),
        pytest.param(
            "my_loaders:nothing",
            f"The loader 'my_loaders:nothing' returned nothing. It must return {RETURNS}.",
            id="returns nothing",
        ),
        pytest.param(
            "my_loaders:number",
            "The loader 'my_loaders:number' returned something of the type int. It must return "
            f"{RETURNS}.",
            id="returns a number",
        ),
        pytest.param(
            "my_loaders:mixed",
            "The loader 'my_loaders:mixed': the column 'a' mixes types or holds what a table can't "
            "(Could not convert 'x' with type str: tried to convert to int64). Give it one type, "
            "say with astype.",
            id="mixed types",
        ),
        pytest.param("my_loaders:empty", "my_loaders:empty has columns but no rows.", id="no rows"),
        pytest.param(
            "my_loaders:twice",
            "The table of the loader 'my_loaders:twice': 2 columns are named 'a' (columns 1 and "
            "2). Give each a name of its own.",
            id="duplicate names",
        ),
    ],
)
def test_loader_refused(source: str, message: str, loaders: str, home: Home) -> None:
    with pytest.raises(UserError) as refused:
        ingested(source, home)
    assert str(refused.value) == message

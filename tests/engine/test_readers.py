"""JSON lines, Arrow, databases, loaders and the demo: the same rows and types as they hold."""

import datetime as dt
import gzip
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tasks.engine.config import DataConfig
from tasks.engine.dataset import Dataset
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.ingest import ingest

UTC = dt.UTC


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


def ingested(source: object, home: Home, **data: Any) -> Dataset:
    return ingest(DataConfig.model_validate({"source": str(source), **data}), home)


def rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for file in dataset.files for row in pq.read_table(file.uri).to_pylist()]


def types(dataset: Dataset) -> dict[str, str]:
    return {column.name: column.arrow for column in dataset.columns}


def test_json_lines(tmp_path: Path, home: Home) -> None:
    lines: list[dict[str, Any]] = [
        {"a": i, "t": "2026-01-01T00:00:00Z", "s": "x"} for i in range(5)
    ]
    lines += [{"a": 1.5, "d": "2026-01-02", "b": True, "s": None, "o": {"k": [1]}}]
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    dataset = ingested(file, home)
    assert types(dataset) == {
        "a": "double",
        "t": "timestamp[us, tz=UTC]",
        "s": "string",
        "d": "date32[day]",
        "b": "bool",
        "o": "struct<k: list<item: int64>>",
    }
    found = rows(dataset)
    assert found[0]["t"] == dt.datetime(2026, 1, 1, tzinfo=UTC)
    assert found[5]["a"] == 1.5
    assert found[5]["d"] == dt.date(2026, 1, 2)
    assert found[4]["d"] is None


def test_json_types_are_found_over_the_whole_file(tmp_path: Path, home: Home) -> None:
    filler = "x" * 2000
    file = tmp_path / "t.jsonl"
    with file.open("w") as table:
        for i in range(5000):
            value = i if i < 4999 else 0.5
            table.write(
                json.dumps({"a": value, "t": "2026-01-01" if i < 4999 else "?", "s": filler})
            )
            table.write("\n")
    dataset = ingested(file, home)
    assert types(dataset) == {"a": "double", "t": "string", "s": "string"}
    assert pq.read_table(dataset.files[0].uri, columns=["t"])["t"].to_pylist()[0] == "2026-01-01"


@pytest.mark.parametrize("kind", ["file", "stream", "feather", "gzip"])
def test_arrow(kind: str, tmp_path: Path, home: Home) -> None:
    table = pa.table(
        {
            "i": pa.array([1, None, 3], pa.int16()),
            "c": pa.array(["x", "y", None]).dictionary_encode(),
            "l": pa.array(["x", "y", None], pa.large_string()),
            "d": pa.array([Decimal("1.10"), None, Decimal("2.00")]),
        }
    )
    file = tmp_path / "t.arrow"
    if kind == "feather":
        feather.write_feather(table, file, compression="zstd")
    else:
        opened = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with opened(file, table.schema) as writer:
            writer.write_table(table)
    if kind == "gzip":
        file.write_bytes(gzip.compress(file.read_bytes()))
    dataset = ingested(file, home)
    assert [column.kind for column in dataset.columns] == ["integer", "string", "string", "decimal"]
    assert rows(dataset) == table.to_pylist()


def test_demo(home: Home) -> None:
    from sklearn.datasets import make_regression

    dataset = ingested("demo:regression", home)
    table = pq.read_table(dataset.files[0].uri)
    features, target = make_regression(n_samples=1000, n_features=5, noise=0.1, random_state=0)
    assert dataset.names == [*(f"feature_{i}" for i in range(5)), "target"]
    assert np.array_equal(table.to_pandas().to_numpy(), np.column_stack([features, target]))
    assert ingested("demo:regression", home) == dataset


# -- databases


@pytest.fixture
def database(tmp_path: Path) -> str:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.executescript(
        "CREATE TABLE sales (id INTEGER PRIMARY KEY, price NUMERIC(10, 2), day DATE, shop TEXT, "
        "mixed, qty REAL);"
    )
    connection.executemany(
        "INSERT INTO sales VALUES (?, ?, ?, ?, ?, ?)",
        [
            (3, 2.5, "2026-01-03", "b", 1, None),
            (1, 1.25, "2026-01-01", "a", 1, 1),
            (2, None, None, None, 2.5, 2.5),
        ],
    )
    connection.commit()
    connection.close()
    return f"sqlite:///{tmp_path}/shop.db"


def test_database_table(database: str, home: Home) -> None:
    dataset = ingested(database, home, table="sales")
    assert {c.name: c.kind for c in dataset.columns} == {
        "id": "integer",
        "price": "decimal",
        "day": "date",
        "shop": "string",
        "mixed": "float",
        "qty": "float",
    }
    found = rows(dataset)
    assert [row["id"] for row in found] == [1, 2, 3]
    assert found[0]["price"] == Decimal("1.25")
    assert found[2]["day"] == dt.date(2026, 1, 3)
    assert dataset.files[0].path == "sales"
    assert dataset.notes == ()
    assert dataset.digest is not None


def test_database_query(database: str, home: Home) -> None:
    query = "SELECT shop, price, day, ':x' AS c FROM sales WHERE id <> 2 ORDER BY id"
    dataset = ingested(database, home, query=query)
    assert rows(dataset) == [
        {"shop": "a", "price": 1.25, "day": dt.date(2026, 1, 1), "c": ":x"},
        {"shop": "b", "price": 2.5, "day": dt.date(2026, 1, 3), "c": ":x"},
    ]
    assert ingested(database, home, query="SELECT * FROM sales").notes == (
        "data.query has no ORDER BY: the database may return the rows in another order next time, "
        "and a row's place decides its side of the split.",
    )


def test_database_is_read_anew_each_time(database: str, home: Home, tmp_path: Path) -> None:
    import sqlite3

    first = ingested(database, home, table="sales")
    assert ingested(database, home, table="sales") == first
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("UPDATE sales SET qty = 9")
    connection.close()
    assert ingested(database, home, table="sales").digest != first.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {},
            "{url} is a database: set data.table, or data.query to an SQL query.",
            id="neither table nor query",
        ),
        pytest.param(
            {"table": "sale"},
            "There is no table 'sale' (data.table) in {url}. Did you mean 'sales'? Its tables are: "
            "sales.",
            id="unknown table",
        ),
        pytest.param(
            {"query": "SELEC 1"},
            '{url}: data.query fails: near "SELEC": syntax error.',
            id="syntax error",
        ),
        pytest.param(
            {"query": "DELETE FROM sales"},
            "{url}: data.query fails: attempt to write a readonly database.",
            id="writes",
        ),
        pytest.param(
            {"query": "SELECT id, id FROM sales ORDER BY 1"},
            "The result of data.query: 2 columns are named 'id' (columns 1 and 2). Give each a "
            "name of its own.",
            id="duplicate names",
        ),
        pytest.param(
            {"query": "SELECT id FROM sales WHERE id > 9 ORDER BY 1"},
            "{url} has columns but no rows.",
            id="no rows",
        ),
        pytest.param(
            {"query": "SELECT id, CASE id WHEN 2 THEN 'x' ELSE 1 END AS m FROM sales ORDER BY 1"},
            "{url}: the column 'm' mixes types (int in row 1, str in row 2). Cast it in "
            "data.query.",
            id="mixed types",
        ),
    ],
)
def test_database_refused(options: dict[str, Any], message: str, database: str, home: Home) -> None:
    with pytest.raises(UserError) as refused:
        ingested(database, home, **options)
    assert str(refused.value) == message.replace("{url}", database)


def test_database_that_is_not_there(database: str, home: Home, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        ingested(database.replace("shop", "shp"), home, table="sales")
    assert str(refused.value) == (
        f"There is no database file '{tmp_path}/shp.db'. Did you mean 'shop.db'?"
    )
    assert not (tmp_path / "shp.db").exists()


# -- loaders


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

"""Sources that become Parquet: the same rows and types, once, and safely beside each other."""

import datetime as dt
import gzip
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.engine.config import DataConfig
from tasks.engine.dataset import Dataset
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.infer import TextColumn
from tasks.engine.ingest import ingest

UTC = dt.UTC


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


def ingested(source: object, home: Home, client: Any = None, **data: Any) -> Dataset:
    return ingest(DataConfig.model_validate({"source": str(source), **data}), home, client)


def rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for file in dataset.files for row in pq.read_table(file.uri).to_pylist()]


def types(dataset: Dataset) -> dict[str, str]:
    return {column.name: column.arrow for column in dataset.columns}


def converted(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "converted").glob("*/data.parquet"))


# -- CSV


def test_csv_types_are_found_over_the_whole_file(tmp_path: Path, home: Home) -> None:
    lines = [
        f"{i},{i}.5,{'true' if i % 2 else 'False'},2026-01-01,2026-01-01T00:00:{i % 60:02},"
        f'2026-01-01 00:00:00+02:00,"a ""{i % 3}""\n, b",,{i}'
        for i in range(40_000)
    ]
    lines = ["i,f,b,d,t,z,s,n,late", *lines[:-1], "7,,,,,,,,0.25"]
    file = tmp_path / "t.csv"
    file.write_text("\n".join(lines) + "\n")
    dataset = ingested(file, home)
    assert types(dataset) == {
        "i": "int64",
        "f": "double",
        "b": "bool",
        "d": "date32[day]",
        "t": "timestamp[us]",
        "z": "timestamp[us, tz=UTC]",
        "s": "string",
        "n": "null",
        "late": "double",
    }
    assert dataset.rows == 40_000
    assert [file.row_groups for file in dataset.files] == [(16_384, 16_384, 7_232)]
    found = rows(dataset)
    assert found[1] == {
        "i": 1,
        "f": 1.5,
        "b": True,
        "d": dt.date(2026, 1, 1),
        "t": dt.datetime(2026, 1, 1, 0, 0, 1),
        "z": dt.datetime(2025, 12, 31, 22, tzinfo=UTC),
        "s": 'a "1"\n, b',
        "n": None,
        "late": 1.0,
    }
    assert found[-1] == dict.fromkeys("fbdtzsn") | {"i": 7, "late": 0.25}
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        pytest.param(b"\xef\xbb\xbfa,b\n1,x\n", {}, [{"a": 1, "b": "x"}], id="byte order mark"),
        pytest.param(
            b"a,b\r\n1,x\n2,y\r\n", {}, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], id="CRLF"
        ),
        pytest.param(b"a,b\r1,x\r", {}, [{"a": 1, "b": "x"}], id="CR"),
        pytest.param(b"a,b\n\n1,x\n\n", {}, [{"a": 1, "b": "x"}], id="blank lines"),
        pytest.param(b"a,b\n 1 ,x\n", {}, [{"a": 1, "b": "x"}], id="spaces around a number"),
        pytest.param(b"a;b\n1;2,5\n", {"separator": ";"}, [{"a": 1, "b": "2,5"}], id="separator"),
        pytest.param(
            "a,b\n1,é\n".encode("cp1252"), {"encoding": "cp1252"}, [{"a": 1, "b": "é"}], id="cp1252"
        ),
        pytest.param(
            "a,b\n1,é\n".encode("utf-16"), {"encoding": "utf-16"}, [{"a": 1, "b": "é"}], id="utf-16"
        ),
        pytest.param(
            gzip.compress(b"a,b\n1") + gzip.compress(b",x\n"), {}, [{"a": 1, "b": "x"}], id="gzip"
        ),
        pytest.param(
            b"a,b\n1,?\n-,x\n,\n",
            {"missing_values": ["-", "?"]},
            [{"a": 1, "b": None}, {"a": None, "b": "x"}, {"a": None, "b": None}],
            id="missing values",
        ),
        pytest.param(
            b"a,b\n1,7\nA1,8\n2,9\n",
            {"categories": ["a"]},
            [{"a": "1", "b": 7}, {"a": "A1", "b": 8}, {"a": "2", "b": 9}],
            id="a category of mixed codes",
        ),
        pytest.param(
            b"a,b\n1,7\n?,8\n",
            {"exclude": ["a"]},
            [{"a": "1", "b": 7}, {"a": "?", "b": 8}],
            id="an excluded column",
        ),
        pytest.param(
            b"a,b\nx,7\n1,8\ny,9\n",
            {},
            [{"a": "x", "b": 7}, {"a": "1", "b": 8}, {"a": "y", "b": 9}],
            id="mostly text",
        ),
        pytest.param(b"a,b\n0x1,x\n", {}, [{"a": "0x1", "b": "x"}], id="hexadecimal is text"),
        pytest.param(
            b'a,b\n1,5" pipe\n', {}, [{"a": 1, "b": '5" pipe'}], id="a quote inside a field"
        ),
    ],
)
def test_csv(
    content: bytes, options: dict[str, Any], expected: Any, tmp_path: Path, home: Home
) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    dataset = ingested(file, home, **options)
    assert rows(dataset) == expected
    assert dataset.notes == ()


def test_csv_notes(tmp_path: Path, home: Home) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "1.csv").write_bytes(b"a,b\n1,9007199254740993\n")
    (folder / "2.csv").write_bytes(b"a,b\n1.5,2")
    dataset = ingested(folder, home)
    assert types(dataset) == {"a": "double", "b": "int64"}
    assert dataset.notes == (
        f"The column 'a' holds integers in {folder}/1.csv and floats in {folder}/2.csv: it is read "
        "as floats.",
        f"{folder}/2.csv: the last line has no line end. Was the file cut short?",
        f"{folder}/1.csv: the column 'b' holds integers beyond 2^53, which are rounded to the "
        "nearest 64-bit float.",
    )


@pytest.mark.parametrize("name", ["housing.csv", "diamonds.csv"])
def test_real_tables(name: str, shared_data: Path, home: Home) -> None:
    """Equal to pandas' reading, to the last bit."""
    dataset = ingested(shared_data / name, home)
    found = pq.read_table(dataset.files[0].uri).to_pandas()
    expected = pd.read_csv(shared_data / name)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.integers(2**70, 2**71).map(str),
    st.floats(allow_nan=False).map(repr),
    st.sampled_from(["true", "False", "2026-01-01", "2026-01-01T10:00", "2026-01-01 10:00Z"]),
    st.sampled_from(["x", "-", "N/A", "", "2026-02-30", " 7", "1e400", "nan"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=12), st.integers(1, 11))
def test_a_type_does_not_depend_on_where_blocks_are_cut(cells: list[str | None], cut: int) -> None:
    def seen(*parts: list[str | None]) -> TextColumn:
        column = TextColumn("c")
        for part in parts:
            column.see(pa.array(part, pa.string()))
        return column

    whole, parted = seen(cells), seen(cells[:cut], cells[cut:])
    assert whole.type == parted.type
    if pa.types.is_string(whole.type):
        assert whole.evidence() == parted.evidence()
    elif not pa.types.is_null(whole.type):
        trimmed = [cell and cell.strip() for cell in cells]
        pa.array(trimmed, pa.string()).cast(whole.type)


# -- once, and safely


def test_a_conversion_is_reused_while_the_file_is_the_same(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n1,2\n")
    first = ingested(file, home)
    written = converted(tmp_path)[0].stat().st_mtime_ns
    assert ingested(file, home) == first
    assert converted(tmp_path)[0].stat().st_mtime_ns == written
    assert len(converted(tmp_path)) == 1

    file.write_bytes(b"a,b\n1,3\n")
    changed = ingested(file, home)
    assert changed.digest != first.digest
    assert rows(changed) == [{"a": 1, "b": 3}]

    assert ingested(file, home, row_group_rows=7).digest == changed.digest
    assert len(converted(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["shorter", "gone", "record"])
def test_a_damaged_conversion_is_made_again(damage: str, tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n1,2\n")
    ingested(file, home)
    path = converted(tmp_path)[0]
    if damage == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    else:
        record = path.parent / "record.json"
        record.write_bytes(record.read_bytes().replace(b'"a"', b'"A"'))
    assert rows(ingested(file, home)) == [{"a": 1, "b": 2}]


def test_verify_reads_the_source_again(tmp_path: Path, home: Home) -> None:
    import os

    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n1,2\n")
    status = file.stat()
    first = ingested(file, home)
    file.write_bytes(b"a,b\n1,3\n")  # of the same size, and the same time
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ingested(file, home).digest == first.digest
    assert rows(ingested(file, home, verify=True)) == [{"a": 1, "b": 3}]


def test_positions_are_those_of_the_originals(tmp_path: Path, home: Home) -> None:
    folder = tmp_path / "d" / "deep"
    folder.mkdir(parents=True)
    (tmp_path / "d" / "b.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    (folder / "a.csv").write_text("a,b\n1,2\n")
    groups = ingested(tmp_path / "d", home, row_group_rows=2).row_groups()
    assert [(g.path, g.index, g.rows, g.start) for g in groups] == [
        ("b.csv", 0, 2, 0),
        ("b.csv", 1, 1, 2),
        ("deep/a.csv", 0, 1, 0),
    ]


def test_a_refused_file_leaves_nothing_behind(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n" + b"1,2\n" * 100_000 + b"1\n")
    with pytest.raises(UserError):
        ingested(file, home)
    assert list((tmp_path / "home" / "converted").iterdir()) == []


def test_conversions_at_once_do_not_disturb_each_other(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n" + b"1,x\n2,y\n" * 50_000)
    with ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda _: ingested(file, home), range(8)))
    assert len(set(datasets)) == 1
    assert pq.read_table(datasets[0].files[0].uri).num_rows == 100_000
    assert sorted(path.name for path in (tmp_path / "home" / "converted").glob("*/*")) == [
        "data.parquet",
        "record.json",
    ]


@pytest.mark.slow
def test_on_a_cluster(tmp_path: Path, home: Home, dask_client: Any) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.csv").write_text(f"a,b\n{i},x\n{i}{'.5' if i == 7 else ''},y\n")
    here = ingested(folder, Home(str(tmp_path / "here")))
    there = ingested(folder, home, dask_client)
    assert there.digest == here.digest
    assert there.columns == here.columns
    assert there.notes == here.notes
    (folder / "05.csv").write_text("a,b\n1\n")
    (folder / "15.csv").write_text("")
    with pytest.raises(UserError) as refused:
        ingested(folder, home, dask_client)
    assert str(refused.value).startswith(f"{folder}/05.csv, line 2: 1 field where the header has 2")


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A file of 120 MB is converted in a process that may not grow by as much."""
    file = tmp_path / "t.csv"
    block = "".join(f"{i},{i / 7},{i * 3.25}\n" for i in range(100_000))
    with file.open("w") as table:
        table.write("a,b,c\n")
        for _ in range(45):
            table.write(block)
    assert file.stat().st_size > 120_000_000
    code = (
        "import resource; from tasks.engine.ingest import *; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; "
        f"before = peak(); d = ingest(DataConfig(source={str(file)!r}), Home({str(tmp_path)!r})); "
        "print(d.rows, peak() - before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, grown = map(int, out.stdout.split())
    assert count == 4_500_000
    assert grown < 110


def test_importing_is_light() -> None:
    code = (
        "import sys, tasks.engine.ingest, tasks.engine.roles; "
        "print([m for m in ('sqlalchemy', 'sklearn', 'dask', 'distributed') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


# -- other formats


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
    dataset = ingested(f"{loaders}:dask", home, row_group_rows=4)
    assert [row["a"] for row in rows(dataset)] == list(range(10))
    assert dataset.files[0].row_groups == (4, 4, 2)
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

"""JSON lines, Arrow and the demo: the same rows and types as they hold."""

import datetime as dt
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tasks.engine.home import Home
from tests.engine.tables import ingested, rows, types

UTC = dt.UTC


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

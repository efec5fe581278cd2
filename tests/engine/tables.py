"""Datasets for tests: tables as ingestion takes them, and what it says of those it refuses."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.engine.config import Config, DataConfig
from tasks.engine.dataset import Dataset
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.ingest import ingest


def write(folder: Path, frames: dict[str, pd.DataFrame], row_group_rows: int = 100) -> Path:
    """Each frame as a Parquet file of `folder`, cut into row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table, folder / name, row_group_size=row_group_rows)
    return folder


def parquet(**columns: Any) -> bytes:
    """A Parquet file of these columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def dataset_of(folder: Path, home: Home, **data: object) -> tuple[Dataset, Config]:
    config = Config.model_validate({"data": {"source": str(folder), "target": "y", **data}})
    return ingest(config.data, home), config


def ingested(source: object, home: Home, client: Any = None, **data: Any) -> Dataset:
    return ingest(DataConfig.model_validate({"source": str(source), **data}), home, client)


def rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for file in dataset.files for row in pq.read_table(file.uri).to_pylist()]


def types(dataset: Dataset) -> dict[str, str]:
    return {column.name: column.arrow for column in dataset.columns}


def refusal(source: object, home: Home, **settings: Any) -> str:
    with pytest.raises(UserError) as refused:
        ingest(DataConfig.model_validate({"source": str(source), **settings}), home)
    return str(refused.value)

"""Datasets for tests: frames written as Parquet files, listed as ingestion lists them."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.engine.config import Config
from tasks.engine.dataset import Dataset
from tasks.engine.home import Home
from tasks.engine.ingest import ingest


def write(folder: Path, frames: dict[str, pd.DataFrame], row_group_rows: int = 100) -> Path:
    """Each frame as a Parquet file of `folder`, cut into row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table, folder / name, row_group_size=row_group_rows)
    return folder


def dataset_of(folder: Path, home: Home, **data: object) -> tuple[Dataset, Config]:
    config = Config.model_validate({"data": {"source": str(folder), "target": "y", **data}})
    return ingest(config.data, home), config

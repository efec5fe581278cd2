"""How the sides after A read a table: Arrow, and one array of it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def load(folder: str) -> tuple[Any, np.ndarray[Any, Any]]:
    """Features and target of all rows.

    Features are float32 of shape (rows, features), or a pandas frame with categories where there
    are texts.
    """
    table = pq.read_table(folder)
    y = table["y"].to_numpy()
    table = table.drop_columns("y")
    texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
    if texts:
        return table.to_pandas(categories=texts), y
    X = np.empty((table.num_rows, table.num_columns), np.float32)
    for j, column in enumerate(table.itercolumns()):
        X[:, j] = column.to_numpy()
    return X, y


def test_rows(rows: int, seed: int) -> np.ndarray[Any, Any]:
    """A mask of 20 % of the rows, drawn one by one."""
    return np.random.default_rng(seed).random(rows) < 0.2

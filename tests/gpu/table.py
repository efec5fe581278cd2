"""The benchmark's table of numbers, made where it is read: Friedman's function and 28 features."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

FEATURES = 28
ROW_GROUP = 1_000_000  # a GPU reads a million rows as fast as a hundred thousand
FILE_ROWS = 10_000_000


def write(folder: Path, rows: int, device: str) -> None:
    """Parquet files of float32 features `f0`… and the float64 target `y`, uncompressed."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        path = folder / f"part-{number:03d}.parquet"
        if device == "cuda":
            _write_cudf(path, min(FILE_ROWS, rows - start), number)
        else:
            _write_arrow(path, min(FILE_ROWS, rows - start), number)


def _drawn(xp: Any, rows: int, seed: int) -> tuple[Any, Any]:
    rng = xp.random.default_rng(seed)
    weights = xp.asarray(
        np.random.default_rng(FEATURES).normal(0, 3 / math.sqrt(FEATURES), FEATURES)
    )
    x = rng.random((FEATURES, rows), dtype=xp.float32)
    y = 10 * xp.sin(math.pi * x[0].astype(xp.float64) * x[1]) + 20 * (x[2] - 0.5) ** 2
    y += 10 * x[3] + 5 * x[4] + rng.standard_normal(rows)
    for j in range(FEATURES):
        y += weights[j] * x[j]
    return x, y


def _write_cudf(path: Path, rows: int, seed: int) -> None:
    import cudf
    import cupy

    x, y = _drawn(cupy, rows, seed)
    frame = cudf.DataFrame({**{f"f{j}": x[j] for j in range(FEATURES)}, "y": y})
    frame.to_parquet(path, compression=None, row_group_size_rows=ROW_GROUP, index=False)


def _write_arrow(path: Path, rows: int, seed: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    x, y = _drawn(np, rows, seed)
    table = pa.table({**{f"f{j}": x[j] for j in range(FEATURES)}, "y": y})
    pq.write_table(table, path, compression="none", row_group_size=ROW_GROUP, use_dictionary=False)


if __name__ == "__main__":
    began = time.monotonic()
    write(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    print(json.dumps({"seconds": {"write": time.monotonic() - began}}))

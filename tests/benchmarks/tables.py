"""The tables that are measured: drawn from a seed, written piece by piece, kept in a folder.

Every table is a folder of Parquet files with the float64 target `y`, numeric features `f0`, `f1`, …
as float32, and text features `c0`, `c1`, ….
"""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Draw = Callable[[np.random.Generator, int], pa.Table]

MISSING = 0.1
EXTERNAL_FEATURES = 1_000  # so many that the bins, not what is kept for each row, take the memory


@dataclass(frozen=True)
class Kind:
    """What a table is made of. A piece becomes a row group; `rows` is the size by default."""

    rows: int
    row_group_rows: int
    file_rows: int
    draw: Draw


def friedman(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Friedman's first function of five features, for `x` of float32 in [0, 1), shape (rows, 5+).

    J. H. Friedman, Multivariate adaptive regression splines, Annals of Statistics 19 (1991).
    """
    x = x[:, :5].astype(np.float64)
    waves = 10 * np.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    return np.asarray(waves + 10 * x[:, 3] + 5 * x[:, 4])


def numeric(columns: int) -> Draw:
    """Friedman's function, and a little of all other features, with noise."""
    weights = np.random.default_rng(columns).normal(0, 3 / math.sqrt(columns), columns)

    def draw(random: np.random.Generator, rows: int) -> pa.Table:
        x = random.random((rows, columns), dtype=np.float32)
        y = friedman(x) + x @ weights + random.normal(0, 1, rows)
        return pa.table({**{f"f{j}": x[:, j].copy() for j in range(columns)}, "y": y})

    return draw


def categorical(random: np.random.Generator, rows: int) -> pa.Table:
    """8 numeric features and 20 of texts (2 to 200 of them), each value missing 1 time in 10."""
    x = random.random((rows, 8), dtype=np.float32)
    y = friedman(x) + random.normal(0, 1, rows)
    columns = {f"f{j}": pa.array(x[:, j], mask=random.random(rows) < MISSING) for j in range(8)}
    for j, count in enumerate(np.geomspace(2, 200, 20).astype(int)):
        effects = np.random.default_rng(j).normal(0, 1, count)  # the same in every piece
        codes = random.integers(0, count, rows)
        y += effects[codes]
        texts = np.array([f"kind {k}" for k in range(count)])
        columns[f"c{j}"] = pa.array(texts[codes], mask=random.random(rows) < MISSING)
    return pa.table({**columns, "y": y})


KINDS = {
    "numeric": Kind(1_000_000, 131_072, 8 * 131_072, numeric(28)),
    "wide": Kind(100_000, 8_192, 16 * 8_192, numeric(2_000)),
    "external": Kind(2_400_000, 8_192, 16 * 8_192, numeric(EXTERNAL_FEATURES)),
    "categorical": Kind(1_000_000, 131_072, 8 * 131_072, categorical),
    "files": Kind(1_000_000, 100, 100, numeric(28)),
    # 100 files and the one that comes the night after
    "nightly": Kind(1_010_000, 10_000, 10_000, numeric(28)),
}


def table(data: Path, name: str, rows: int, seed: int) -> Path:
    """The folder of the table `name` under `data`, written where it is not there already.

    Raises:
        SystemExit: the disk is too full for it.
    """
    kind = KINDS[name]
    folder = data / f"{name}-{rows}-seed{seed}"
    if folder.exists():
        return folder
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    need = rows * kind.draw(np.random.default_rng(0), 100).nbytes // 100
    free = shutil.disk_usage(partial).free
    if need > 0.9 * free:
        raise SystemExit(f"{folder} needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there.")
    print(f"writing {folder}", flush=True)
    for number, start in enumerate(range(0, rows, kind.file_rows)):
        random = np.random.default_rng([seed, number])
        write(
            partial / f"part-{number:05d}.parquet", kind, min(kind.file_rows, rows - start), random
        )
    partial.rename(folder)  # a folder of this name is complete
    return folder


def write(file: Path, kind: Kind, rows: int, random: np.random.Generator) -> None:
    schema = kind.draw(random, 1).schema
    # a dictionary of floats that are all different would only make the file larger
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    with pq.ParquetWriter(file, schema, use_dictionary=texts) as writer:
        for start in range(0, rows, kind.row_group_rows):
            writer.write_table(kind.draw(random, min(kind.row_group_rows, rows - start)))

"""How fast the engine reads Parquet from the page cache: python -m tests.gpu.reading FOLDER DEVICE

As in a pass over the table: batch by batch, on as many threads as a worker has; and by batches of
other sizes. The speed is that of the engine's own.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.cuda_cluster import MOST_THREADS
from tasks.engine.config import DataConfig
from tasks.engine.dataset import RowGroup
from tasks.engine.fold import BATCH_ROWS, batches, rows_of_batch
from tasks.engine.frames import Device, read_frame
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tests.gpu.pool import use_pool

REPEATS = 3


def main() -> None:
    folder, device = Path(sys.argv[1]), sys.argv[2]
    kind: Device = "cuda" if device == "cuda" else "cpu"
    files = sorted(folder.glob("*.parquet"))
    size = sum(file.stat().st_size for file in files)
    with TemporaryDirectory() as home:
        dataset = ingest(DataConfig(source=str(folder), target="y"), Home(home))
    columns = [column.name for column in dataset.columns]
    if kind == "cuda":
        use_pool()

    def read(batch: tuple[RowGroup, ...]) -> None:
        frame: Any = read_frame(batch, columns, kind)
        assert frame.shape[1] == len(columns)

    own = rows_of_batch(len(columns), kind)
    read(batches(dataset.row_groups(), own)[0])  # the GPU's context and kernels are there from now
    threads = max(1, min(MOST_THREADS, os.cpu_count() or 1))
    found = {}
    for rows in sorted({BATCH_ROWS, own, 2 * own}):
        cut = batches(dataset.row_groups(), rows)
        for at_once in sorted({1, threads}):
            with ThreadPoolExecutor(at_once) as pool:
                times = []
                for _ in range(REPEATS):
                    began = time.monotonic()
                    list(pool.map(read, cut))
                    times.append(time.monotonic() - began)
            found[f"{rows:,} rows on {at_once} threads"] = min(times)
    speed = size / 1e9 / found[f"{own:,} rows on {threads} threads"]
    print(json.dumps({"seconds": found, "gb_per_s": speed}))


if __name__ == "__main__":
    main()

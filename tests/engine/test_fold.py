"""The fold on threads of this process; on workers it is part of what folds: `test_evaluate.py`."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from tasks.engine.dataset import Batch, RowGroup, rows_in
from tasks.engine.fold import batches, fold, rows_of_batch

GROUPS = [RowGroup(uri=f"{i}", path=f"{i}", index=0, rows=10_000, start=0) for i in range(12)]


def test_merged_in_order_whichever_comes_first() -> None:
    told: list[tuple[int, int]] = []

    def named(batch: Batch) -> list[str]:
        time.sleep(0.05 if int(batch[0].path) % 3 == 0 else 0)
        return [batch[0].path]

    with ThreadPoolExecutor(3) as pool:
        found = fold(pool, GROUPS, named, list.__add__, lambda *done: told.append(done))
    assert found == [group.path for group in GROUPS]
    assert told == [(10_000 * n, 120_000) for n in range(1, 13)]


def test_of_wide_tables_fewer_rows_are_read_at_once() -> None:
    groups = [RowGroup(uri="w", path="w", index=i, rows=2_000, start=2_000 * i) for i in range(64)]

    def rows(batch: Batch) -> list[int]:
        return [sum(group.rows for group in batch)]

    assert fold(None, groups, rows, list.__add__) == [128_000]
    assert fold(None, groups, rows, list.__add__, columns=200) == [20_000] * 6 + [8_000]
    assert fold(None, groups, rows, list.__add__, columns=2_000) == [2_000] * 64
    assert fold(None, groups, rows, list.__add__, columns=10_000_000) == [2_000] * 64


def test_a_gpu_takes_more_rows_at_once() -> None:
    groups = [RowGroup(uri="w", path="w", index=i, rows=2_000, start=2_000 * i) for i in range(64)]
    cut = batches(groups, rows_of_batch(200, "cuda"))
    assert [rows_in(batch) for batch in cut] == [82_000, 46_000]


def test_after_an_error_nothing_more_begins() -> None:
    begun: list[str] = []
    failed = Event()

    def broken(batch: Batch) -> list[str]:
        begun.append(batch[0].path)
        if batch[0].path == "1":
            failed.set()
            raise FileNotFoundError("1 is gone")
        failed.wait()
        time.sleep(0.3)
        return []

    with ThreadPoolExecutor(2) as pool, pytest.raises(FileNotFoundError, match="1 is gone"):
        fold(pool, GROUPS, broken, list.__add__)
    assert len(begun) <= 4

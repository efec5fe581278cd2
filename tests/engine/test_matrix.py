"""Batches reach XGBoost whole, in order, and are read no more often than they must."""

import threading
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost as xgb

from tasks.engine.batches import Batch, BatchSource, Counts, Sides, open_cache
from tasks.engine.boosting import _Sample
from tasks.engine.errors import RunError
from tasks.engine.matrix import (
    BatchIterator,
    Pages,
    Schema,
    binned_matrix,
    cut_points,
    matrices,
    reference_matrix,
)
from tasks.engine.parts import write_slices
from tasks.engine.scoring import Column, Encoder
from tests.engine import rows_for_boosting as made

SCHEMA = Schema(made.NAMES, made.TYPES)


class Counted:
    """Batch sources that count their reads."""

    def __init__(self) -> None:
        self.reads = [0] * made.GROUPS
        self.sources = [made.source(partial(self.read, i)) for i in range(made.GROUPS)]

    def read(self, index: int) -> Sides:
        self.reads[index] += 1
        return made.read(made.ROW_GROUPS[index], True, None, False)


def build(
    sources: list[BatchSource], budget: int, pages: Pages | None = None
) -> tuple[BatchIterator, Any]:
    reference = reference_matrix(made.sample(), SCHEMA, 64, 1)
    with open_cache(sources, budget) as cache:
        rows = BatchIterator(cache, "train", SCHEMA, lambda y: (y - 1e6).astype(np.float32), pages)
        train = binned_matrix(rows, reference, 64, 1)
        cache.forget("train")
        valid = BatchIterator(cache, "valid", SCHEMA, lambda y: (y - 1e6).astype(np.float32), pages)
        binned_matrix(valid, train, 64, 1)
    return rows, train


class Complete(Counted):
    """Numbers alone, none missing but where `gap` says so; one batch has no valid rows."""

    def __init__(self, gap: int | None = None) -> None:
        super().__init__()
        self.gap = gap
        self.sources = [
            BatchSource(source.read, partial(self.count, i))
            for i, source in enumerate(self.sources)
        ]

    def read(self, index: int) -> Sides:
        sides = super().read(index)
        found = [self._filled(batch) for batch in (sides.train, sides.valid)]
        if index == self.gap:
            found[0].features[7, 3] = np.nan
        return Sides(found[0], made.no_rows() if index == 2 else found[1])

    def count(self, index: int) -> Counts:
        sides = made.read(made.ROW_GROUPS[index], True, None, False)
        valid = 0 if index == 2 else len(sides.valid.label)
        return {"train": len(sides.train.label), "valid": valid}

    @staticmethod
    def _filled(batch: Batch) -> Batch:
        return replace(batch, features=np.nan_to_num(batch.features))


def test_where_no_value_is_missing_each_batch_is_read_once() -> None:
    """Train and valid rows together, as all that is kept fits; and the matrices are the same."""
    known, unknown = Complete(), Complete()
    found = [complete(known, complete=True), complete(unknown, complete=False)]
    assert sum(known.reads) <= made.GROUPS + 1  # what was read ahead in vain
    assert sum(unknown.reads) >= 3 * made.GROUPS
    for one, other in zip(*found, strict=True):
        assert one.num_row() == other.num_row() > 1_000
        assert one.num_nonmissing() == other.num_nonmissing() == one.num_row() * made.WIDTH
        np.testing.assert_array_equal(one.get_label(), other.get_label())
    models = [
        xgb.train({"nthread": 1, "max_bin": 64}, train, 5, evals=[(valid, "valid")], verbose_eval=0)
        for train, valid in found
    ]
    assert models[0].save_raw() == models[1].save_raw()
    margins = [model.predict(valid) for model, (_, valid) in zip(models, found, strict=True)]
    np.testing.assert_array_equal(margins[0], margins[1])


def test_a_missing_value_that_the_profile_did_not_find() -> None:
    with pytest.raises(RunError, match=r"^The profile found no missing value, but rows"):
        complete(Complete(gap=5), complete=True)


def complete(counted: Complete, *, complete: bool) -> tuple[Any, Any]:
    """Train and valid matrix; what is kept holds all valid rows and no train rows beside them."""
    schema = Schema(made.NAMES, ("q",) * made.WIDTH)
    reference = reference_matrix(np.nan_to_num(made.sample()), schema, 64, 1)
    with open_cache(counted.sources, 70_000) as cache:
        built = matrices(
            cache,
            reference,
            schema,
            lambda y: (y - 1e6).astype(np.float32),
            64,
            1,
            with_valid=True,
            keeps_rows=False,
            complete=complete,
        )
    return built.train, built.valid


@pytest.mark.parametrize(
    ("budget", "reads"),
    [pytest.param(1 << 30, 1, id="all kept"), pytest.param(0, 6, id="nothing kept")],
)
def test_reads(budget: int, reads: int) -> None:
    counted = Counted()
    build(counted.sources, budget)
    assert max(counted.reads) <= reads + 1 and min(counted.reads) >= 1
    assert sum(counted.reads) <= reads * made.GROUPS + 3  # what was read ahead in vain


NORMAL = np.random.default_rng(0).normal(size=20_000).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([3, 1, 2, 2, np.nan], [1, 2, 3], id="few values"),
        pytest.param([np.nan, np.nan], [], id="none there"),
        pytest.param([-7.0] * 9, [-7], id="one value"),
        pytest.param(np.arange(64)[::-1], np.arange(64), id="as many as bins"),
        pytest.param(np.arange(128), np.arange(0, 128, 2), id="twice as many"),
        # half of the rows are zeros: the bins that are left hold a 64th of the rows each
        pytest.param([0] * 100 + [*range(100)], [0, *np.arange(0, 100, 3.125)[1:]], id="ties"),
    ],
)
def test_cut_points(values: Any, expected: Any) -> None:
    found = cut_points(np.asarray(values, np.float32), 64)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.floor(np.asarray(expected, np.float32)))


def test_bins_hold_about_as_many_rows_each_and_categories_one_each() -> None:
    kinds = np.random.default_rng(1).integers(0, 90, len(NORMAL)).astype(np.float32)
    sample = np.stack([NORMAL, kinds, np.round(NORMAL), np.full_like(NORMAL, np.nan)], axis=1)
    schema = Schema(("a", "b", "c", "d"), ("q", "c", "q", "q"))
    reference = reference_matrix(sample, schema, 64, 1)
    pointers, values = reference.get_quantile_cut()
    a, b, c, d = (values[pointers[i] : pointers[i + 1]] for i in range(4))
    # XGBoost's own first and last lie beyond all values
    np.testing.assert_array_equal(a[1:-1], cut_points(NORMAL, 64)[1:])
    held, _ = np.histogram(NORMAL, a)
    assert len(held) == 64 and held.min() >= 300 and held.max() <= 320
    np.testing.assert_array_equal(b, np.arange(90))
    np.testing.assert_array_equal(c[1:-1], np.unique(np.round(NORMAL))[1:])
    assert len(d) <= 2


def test_a_category_that_no_sampled_row_has_is_trained_as_itself(tmp_path: Path) -> None:
    encoder = Encoder((Column("a", "number"), Column("kind", "category", categories=(*"pqrs",))))
    kinds = np.array(["p", "q", "r", "s"] * 50)
    sampled = pa.table({"a": np.arange(3.0), "kind": ["p", "q", "r"], "_draw": np.zeros(3)})
    (parts,) = write_slices(str(tmp_path), sampled, [3])
    reference = reference_matrix(
        _Sample(parts, 1.0, encoder.to_json())(), Schema(("a", "kind"), ("q", "c")), 64, 1
    )
    features = encoder.encode(pd.DataFrame({"a": np.zeros(200), "kind": kinds}))
    label = np.where(kinds == "s", 10.0, 0.0)
    train = xgb.QuantileDMatrix(
        features, label, ref=reference, enable_categorical=True,
        feature_names=["a", "kind"], feature_types=["q", "c"], max_bin=64, nthread=1,
    )  # fmt: skip
    params = {"base_score": 0, "reg_lambda": 0, "eta": 1, "max_bin": 64, "nthread": 1}
    found = xgb.train(params, train, 1)
    np.testing.assert_allclose(found.inplace_predict(features), label, atol=1e-5)


@pytest.mark.parametrize(
    ("page_rows", "given"),
    [
        pytest.param(None, 0, id="in memory"),
        pytest.param(100, 2 * (8 * 5 + 8 * 2), id="a batch is several pages"),
        pytest.param(1_000, 2 * (4 + 2), id="a page is several batches"),
        pytest.param(10_000, 2 * (1 + 1), id="all batches"),
    ],
)
def test_rows_are_in_order(tmp_path: Path, page_rows: int | None, given: int) -> None:
    """Also as pages on disk; a batch has some 450 train rows and 150 valid rows here, and XGBoost
    reads all pages twice.
    """
    checks: list[None] = []
    pages = page_rows and Pages(tmp_path, page_rows, lambda: checks.append(None))
    rows, train = build(Counted().sources, 100_000, pages or None)
    assert len(checks) == given
    expected = [made.read(group, True, None, False).train for group in made.ROW_GROUPS]
    np.testing.assert_array_equal(rows.position, np.concatenate([b.position for b in expected]))
    labels = np.concatenate([b.label - 1e6 for b in expected]).astype(np.float32)
    np.testing.assert_array_equal(train.get_label(), labels)
    weights = np.concatenate([b.weight for b in expected if b.weight is not None])
    assert rows.weight is not None
    np.testing.assert_array_equal(rows.weight, weights)


def test_an_exception_surfaces_as_itself() -> None:
    sources = Counted().sources

    def broken() -> Sides:
        raise FileNotFoundError("part-3.parquet is gone")

    sources[3] = made.source(broken)
    with pytest.raises(FileNotFoundError, match=r"part-3\.parquet is gone"):
        build(sources, 0)


def test_the_reading_thread_is_joined() -> None:
    build(Counted().sources, 0)
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_without_rows(tmp_path: Path) -> None:
    empty = made.no_rows()
    on_disk = Pages(tmp_path, 100, lambda: None)
    for sources, pages in product(
        ([], [made.source(lambda: Sides(empty, empty))]), (None, on_disk)
    ):
        rows, train = build(list(sources), 0, pages)
        assert train.num_row() == 0 and train.num_col() == made.WIDTH and len(rows.position) == 0

"""Sorted train rows: by what parts them, whole, and to the same model."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from tasks.engine.batches import Batch, Sides
from tasks.engine.boost import Segment, boost_segment
from tasks.engine.matrix import Schema, reference_matrix
from tasks.engine.memory import ORDERED_ROWS, Share
from tasks.engine.row_order import WORTH_ROUNDS, Cells, in_order
from tests.engine import rows_for_boosting as made

SCHEMA = Schema(("noise", "steep", "kind", "flat"), ("q", "q", "c", "q"))


def reference() -> Any:
    return reference_matrix(batch(20_000).features, SCHEMA, 256, 1)


def batch(rows: int, seed: int = 0, weighted: bool = True) -> Batch:
    """`steep` parts the rows first, then `kind`, then `flat`; some of `flat` are missing."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(4, rows)).astype(np.float32)
    features[2] = random.integers(0, 8, rows)
    label = 100 * features[1] + 30 * (features[2] % 2) + 5 * features[3]
    features[3, random.random(rows) < 0.1] = np.nan
    weight = random.random(rows) if weighted else None
    return Batch(features.T, label.astype(np.float64), np.arange(rows, dtype=np.uint64), weight)


def test_rows_of_a_cell_lie_together_in_their_order() -> None:
    whole = batch(20_000)
    cells = Cells.of(whole, reference(), 1)
    assert [place for place, _ in cells.bounds][:2] == [1, 2]
    order = cells.order(whole.features)
    assert sorted(order) == [*range(20_000)]
    quarter = np.searchsorted(
        np.quantile(whole.features[:, 1], [0.25, 0.5, 0.75]), whole.features[:, 1]
    )
    assert (
        np.all(np.abs(np.diff(quarter[order])) <= 1)
        and np.count_nonzero(np.diff(quarter[order])) < 20
    )
    together = np.flatnonzero((quarter == 2) & (whole.features[:, 2] == 7))
    assert len(together) > 500
    places = np.argsort(order)[together]
    assert np.ptp(places) < 2_000


def test_a_sorted_batch_has_whole_rows() -> None:
    whole = batch(20_000)
    found = Cells.of(whole, reference(), 1).sorted(whole)
    assert not np.array_equal(found.position, whole.position)
    back = np.argsort(found.position)
    np.testing.assert_array_equal(found.features[back], whole.features)
    np.testing.assert_array_equal(found.label[back], whole.label)
    assert found.weight is not None and whole.weight is not None
    np.testing.assert_array_equal(found.weight[back], whole.weight)
    assert Cells.of(whole, reference(), 1).sorted(batch(500, 1, weighted=False)).weight is None


@pytest.mark.parametrize("rows", [0, 1, 200])
def test_few_rows_stay_as_they_are(rows: int) -> None:
    cells = Cells.of(batch(20_000), reference(), 1)
    assert [*cells.order(batch(rows).features)] == [*range(rows)]


def test_where_nothing_parts_the_rows_they_stay() -> None:
    for rows in (0, 300):
        whole = batch(rows)
        flat = Batch(whole.features, np.ones(rows), whole.position)
        sources = [made.source(partial(Sides, flat, flat))] * 3
        assert in_order(sources, reference(), 1) is sources


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"max_weight": 4.0}, id="weights"),
        pytest.param({"subsample": 0.6}, id="rows sampled"),
        pytest.param(
            {
                "params": {"max_depth": 4, "max_bin": 64, "colsample_bytree": 0.5},
                "column_chunk": 5,
            },
            id="columns sampled",
        ),
    ],
)
def test_the_same_bytes(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are claimed to be many, so that they are sorted; 4,800 are there."""
    calls: list[int] = []

    def watched(sources: Any, *more: Any) -> Any:
        calls.append(len(sources))
        return in_order(sources, *more)

    monkeypatch.setattr("tasks.engine.boost.in_order", watched)
    monkeypatch.setattr("tasks.engine.row_order.CELL_ROWS", 2)

    def boosted(rows: int, rounds: int = WORTH_ROUNDS) -> Segment:
        return boost_segment(
            made.spec(n_estimators=rounds, **changes),
            made.make_batches(made.ROW_GROUPS, weighted="max_weight" in changes),
            made.sample(),
            None,
            group=None,
            save=lambda checkpoint: None,
            on_round=lambda round_, metrics: None,
            share=Share(rows=rows),
        )

    plain, sorted_ = boosted(ORDERED_ROWS - 1), boosted(ORDERED_ROWS)
    assert len(calls) == 1
    assert plain.checkpoint and sorted_.checkpoint
    assert sorted_.checkpoint.raw == plain.checkpoint.raw
    assert sorted_.checkpoint.history == plain.checkpoint.history
    boosted(ORDERED_ROWS, WORTH_ROUNDS - 1)
    assert len(calls) == 1

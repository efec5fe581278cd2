"""Quantiles by counting are np.quantile's, to the last bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.engine.dataset import RowGroup
from tasks.engine.frames import read_arrow
from tasks.engine.hashing import Float64
from tasks.engine.quantiles import Counts, exact_quantiles, image, number

QUANTILES = [0.0, 0.1, 1 / 3, 0.5, 0.9, 0.999, 1.0]
FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


class Chunks:
    """Values by batch without files: row group i holds chunk i."""

    def __init__(self, **columns: list[Float64]) -> None:
        self.columns = columns
        self.passes = 0

    def groups(self) -> list[RowGroup]:
        sizes = [len(chunk) for chunk in next(iter(self.columns.values()))]
        return [
            RowGroup(uri=f"{i}", path=f"{i}", index=0, rows=size, start=0)
            for i, size in enumerate(sizes)
        ]

    def __call__(self, batch: tuple[RowGroup, ...]) -> dict[str, Float64]:
        places = [int(group.uri) for group in batch]
        self.passes += places[0] == 0
        return {
            name: np.concatenate([chunks[place] for place in places])
            for name, chunks in self.columns.items()
        }


def same_bits(found: list[float], expected: Float64) -> bool:
    return np.array_equal(np.array(found) + 0.0, np.asarray(expected) + 0.0, equal_nan=True)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(FINITE | st.sampled_from([0.0, -0.0, 1.0, 5e-324]), min_size=1, max_size=40),
    quantiles=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    cut=st.integers(0, 40),
    few=st.sampled_from([0, 3, 1 << 16]),
)
def test_quantiles_are_numpys(
    values: list[float], quantiles: list[float], cut: int, few: int
) -> None:
    column = np.array(values)
    chunks = Chunks(x=[column[:cut], column[cut:]])
    with np.errstate(over="ignore"):
        found = exact_quantiles(None, chunks.groups(), chunks, {"x": quantiles}, few=few)
        expected = np.quantile(column, quantiles)
    assert same_bits(found["x"], expected)


@given(left=st.floats(allow_nan=False), right=st.floats(allow_nan=False))
@example(left=-0.0, right=0.0)
def test_images_order_as_the_numbers(left: float, right: float) -> None:
    a, b = (int(order) for order in image(np.array([left, right])))
    assert (a < b, a == b) == (left < right, left == right)
    assert number(a) == left


@pytest.mark.parametrize(
    ("few", "passes"),
    [
        pytest.param(0, 4, id="digit by digit"),
        pytest.param(2_000, 2, id="small rest counted whole"),
        pytest.param(50_000, 1, id="small table counted whole"),
    ],
)
def test_names_share_the_passes(few: int, passes: int) -> None:
    random = np.random.default_rng(0)
    skewed = [random.lognormal(0, 2, size) for size in (7_000, 1, 13_000)]
    rounded = [np.round(chunk * 10 - 50) for chunk in skewed]
    chunks = Chunks(skewed=skewed, rounded=rounded)
    wanted = {"skewed": QUANTILES, "rounded": [0.5]}
    found = exact_quantiles(None, chunks.groups(), chunks, wanted, few=few)
    assert same_bits(found["skewed"], np.quantile(np.concatenate(skewed), QUANTILES))
    assert same_bits(found["rounded"], np.quantile(np.concatenate(rounded), [0.5]))
    assert chunks.passes == passes


def test_counts_of_a_digit_never_exceed_its_values() -> None:
    digit = 1 << 16
    column = np.random.default_rng(0).permutation(1.0 + np.arange(4 * digit) * 2.0**-40)
    chunks = Chunks(x=np.array_split(column, 3))
    seen: list[int] = []
    merge = Counts.merge

    def watched(self: Counts, other: Counts) -> Counts:
        merged = merge(self, other)
        seen.append(len(merged.prefix))
        return merged

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counts, "merge", watched)
        found = exact_quantiles(None, chunks.groups(), chunks, {"x": [0.25]})
    assert same_bits(found["x"], np.quantile(column, [0.25]))
    assert max(seen) <= digit


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([], [np.nan, np.nan], id="no values"),
        pytest.param([1.0, np.nan, 2.0], [np.nan, np.nan], id="a missing value"),
        pytest.param([1.0, -np.nan, 2.0], [np.nan, np.nan], id="a negative missing value"),
        pytest.param([-np.inf, 1.0, 2.0, np.inf], [1.5, np.inf], id="infinities"),
        pytest.param([-0.0, 0.0], [0.0, 0.0], id="negative zero"),
        pytest.param([7.0], [7.0, 7.0], id="one value"),
    ],
)
@pytest.mark.parametrize("few", [0, 1 << 16])
def test_values_without_an_order(values: list[float], expected: list[float], few: int) -> None:
    chunks = Chunks(x=[np.array(values)])
    rows = [chunks.groups()[0].model_copy(update={"rows": 5})]
    found = exact_quantiles(None, rows, chunks, {"x": [0.5, 1.0]}, few=few)["x"]
    assert same_bits(found, np.array(expected))


def test_quantiles_lie_from_0_to_1() -> None:
    chunks = Chunks(x=[np.ones(3)])
    with pytest.raises(ValueError, match=r"quantiles of 'x' must lie from 0 to 1: \[0.5, 1.5\]"):
        exact_quantiles(None, chunks.groups(), chunks, {"x": [0.5, 1.5]})


def read_x(batch: tuple[RowGroup, ...]) -> dict[str, Float64]:
    return {"x": read_arrow(batch, ["x"])["x"].to_numpy()}


def test_workers_count(tmp_path: Path, dask_client: Any) -> None:
    column = np.random.default_rng(1).normal(size=200_000)
    groups = []
    for i, chunk in enumerate(np.array_split(column, 6)):
        uri = str(tmp_path / f"{i}.parquet")
        pq.write_table(pa.table({"x": chunk}), uri)
        groups.append(RowGroup(uri=uri, path=f"{i}", index=0, rows=len(chunk), start=0))
    found = exact_quantiles(dask_client, groups, read_x, {"x": QUANTILES})
    assert same_bits(found["x"], np.quantile(column, QUANTILES))

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.engine.config import SplitConfig
from tasks.engine.errors import UserError
from tasks.engine.hashing import positions, stream, uniform
from tasks.engine.split import NONE, TEST, TRAIN, VALID, resolve_split, shares_wanted


@given(
    rows=st.integers(1, 500),
    cut=st.integers(0, 500),
    path=st.text(min_size=1),
    seed=st.integers(0, 5),
)
def test_a_row_stays_on_its_side_however_the_file_is_cut(
    rows: int, cut: int, path: str, seed: int
) -> None:
    split = resolve_split(SplitConfig(seed=seed))
    cut = min(cut, rows)
    whole = split.sides(positions(path, 0, rows), None)
    parts = [
        split.sides(positions(path, 0, cut), None),
        split.sides(positions(path, cut, rows - cut), None),
    ]
    assert np.array_equal(np.concatenate(parts), whole)
    assert set(whole) <= {TRAIN, VALID, TEST}


def test_shares_are_kept_and_another_seed_deals_anew() -> None:
    position = positions("a.parquet", 0, 200_000)
    sides = resolve_split(SplitConfig(valid=0.1, test=0.2)).sides(position, None)
    shares = np.bincount(sides) / len(sides)
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.005)
    other = resolve_split(SplitConfig(valid=0.1, test=0.2, seed=1)).sides(position, None)
    assert 0.3 < (sides != other).mean() < 0.6


def test_uses_of_chance_are_independent() -> None:
    position = positions("a.parquet", 0, 100_000)
    draws = [uniform(position, stream(salt, 0)) for salt in ("split", "sample")]
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 0.01
    assert draws[0].min() >= 0
    assert draws[0].max() < 1


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pd.Series([7, 8, 7, 9]), id="integers"),
        pytest.param(pd.Series([7.0, 8.0, 7.0, 9.0]), id="floats"),
        pytest.param(pd.Series(["7", "8", "7", "9"]), id="texts"),
        pytest.param(pd.Series(["7", "8", "7", "9"], dtype="category"), id="categories"),
        pytest.param(pd.Series([7, 8, 7, 9], dtype="Int64"), id="nullable"),
    ],
)
def test_a_group_is_on_one_side_whatever_its_type(column: pd.Series) -> None:
    split = resolve_split(SplitConfig(kind="group", column="customer", valid=0.3, test=0.3))
    sides = split.sides(positions("a", 0, 4), column)
    assert sides[0] == sides[2]
    assert sides.tolist() == split.sides(positions("b", 9, 4), pd.Series([7, 8, 7, 9])).tolist()


def test_a_missing_group_has_no_side() -> None:
    split = resolve_split(SplitConfig(kind="group", column="customer"))
    assert split.sides(positions("a", 0, 2), pd.Series(["x", None]))[1] == NONE


def test_time_has_borders() -> None:
    config = SplitConfig(
        kind="time", column="sold", valid_from="2026-01-02", test_from="2026-01-03T12:00"
    )
    split = resolve_split(config)
    times = pd.to_datetime(
        ["2026-01-01", "2026-01-02", "2026-01-03T11:59", "2026-01-03T12:00"], format="ISO8601"
    )
    seconds = np.append(times.as_unit("s").asi8.astype(float), np.nan)
    sides = split.sides(positions("a", 0, 5), seconds)
    assert sides.tolist() == [TRAIN, VALID, VALID, TEST, NONE]


def test_time_by_shares_asks_for_quantiles() -> None:
    config = SplitConfig(kind="time", column="sold", valid=0.1, test=0.2)
    assert shares_wanted(config) == pytest.approx([0.7, 0.8])
    split = resolve_split(config, [70.0, 80.0])
    sides = split.sides(positions("a", 0, 100), np.arange(100.0))
    assert np.bincount(sides).tolist() == [70, 10, 20]


def test_borders_that_cross_are_refused() -> None:
    config = SplitConfig(kind="time", column="t", valid_from="2026-02-01", test_from="2026-01-01")
    with pytest.raises(UserError) as refused:
        resolve_split(config)
    assert str(refused.value) == (
        "The valid rows (from 2026-02-01T00:00:00+00:00) do not begin before the test rows (from "
        "2026-01-01T00:00:00+00:00): set split.valid_from before split.test_from, or split.valid=0."
    )


def test_labels_are_read_as_people_write_them() -> None:
    split = resolve_split(SplitConfig(kind="column", column="fold"))
    labels = pd.Series(["train", "Validation", "TEST", "val", None])
    sides = split.sides(positions("a", 0, 5), labels)
    assert sides.tolist() == [TRAIN, VALID, TEST, VALID, NONE]
    with pytest.raises(UserError) as refused:
        split.sides(positions("a", 0, 1), pd.Series(["holdout"]))
    assert str(refused.value) == (
        "The split column 'fold' (split.column) holds 'holdout'. It takes the labels train, valid "
        "and test."
    )

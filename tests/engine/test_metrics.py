"""Metrics from exact sums are scikit-learn's, and say NaN where there is no answer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from tasks.engine.exact import Digits, value
from tasks.engine.hashing import Float64
from tasks.engine.metrics import NOTHING, ErrorSums, ErrorTerms, metrics, part_of_rows

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e150, max_value=1e150)


def sums_of(actual: Float64, predicted: Float64, train_mean: float = 0.0) -> ErrorSums:
    return ErrorTerms(actual, predicted, train_mean).sums(np.zeros(len(actual), np.int64), 1)[0]


@settings(deadline=None)
@given(st.lists(st.tuples(FINITE, st.integers(0, 2)), max_size=30))
def test_sums_are_not_rounded(rows: list[tuple[float, int]]) -> None:
    values = np.array([x for x, _ in rows])
    group = np.array([at for _, at in rows], dtype=np.int64)
    found = Digits.of(values).sums(group, 3)
    for at, total in enumerate(found):
        assert float(value(total)) == math.fsum(values[group == at])


def test_sums_of_many_groups_are_the_same() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=5_000) * 10.0 ** random.integers(-300, 300, 5_000)
    group = random.integers(0, 600, 5_000)
    found = Digits.of(values).sums(group, 600)
    assert [float(value(total)) for total in found] == [
        math.fsum(values[group == at]) for at in range(600)
    ]


@pytest.mark.parametrize(
    ("center", "deviation"),
    [
        pytest.param(3.0, 1.0, id="small numbers"),
        pytest.param(1.7e9, 9.0, id="far from zero"),
        pytest.param(-2e-9, 1e-12, id="tiny"),
        pytest.param(0.0, 1e15, id="huge"),
    ],
)
def test_metrics_are_scikit_learns(center: float, deviation: float) -> None:
    random = np.random.default_rng(0)
    actual = center + deviation * random.standard_t(3, size=20_000)
    predicted = actual + deviation * (0.1 + 0.5 * random.normal(size=20_000))
    found = metrics(sums_of(actual, predicted, float(actual[:5_000].mean())), 7, 0.0)
    r2 = sk.r2_score(actual, predicted)
    expected = {
        "r2": r2,
        "adjusted_r2": 1 - (1 - r2) * 19_999 / 19_992,
        "rmse": sk.root_mean_squared_error(actual, predicted),
        "mae": sk.mean_absolute_error(actual, predicted),
        "mape": sk.mean_absolute_percentage_error(actual, predicted),
        "explained_variance": sk.explained_variance_score(actual, predicted),
    }
    for name, score in expected.items():
        assert getattr(found, name) == pytest.approx(score, rel=1e-12, abs=0), name


def test_share_of_a_zero_is_scikit_learns() -> None:
    actual, predicted = np.array([0.0, 2.0]), np.array([1.0, 3.0])
    expected = sk.mean_absolute_percentage_error(actual, predicted)
    assert metrics(sums_of(actual, predicted), 1, 1.0).mape == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("actual", "features", "undefined"),
    [
        pytest.param([0.1] * 5, 1, {"r2", "adjusted_r2", "explained_variance"}, id="constant"),
        pytest.param([0.1], 0, {"r2", "adjusted_r2", "explained_variance"}, id="one row"),
        pytest.param([1.0, 2.0, 3.0], 2, {"adjusted_r2"}, id="n = p + 1"),
        pytest.param([1.0, 2.0, 3.0], 1, set(), id="n = p + 2"),
    ],
)
def test_undefined_metrics_are_nan(actual: list[float], features: int, undefined: set[str]) -> None:
    # The mean is far off, so that a constant's spread would not be 0 if squares were rounded.
    found = metrics(sums_of(np.array(actual), np.full(len(actual), 0.7), 1e3 / 3), features, 0.0)
    values = found.model_dump()
    assert {name for name, score in values.items() if math.isnan(score)} == undefined


def test_no_rows_have_no_metrics() -> None:
    found = metrics(NOTHING, 3, math.nan)
    assert found.rows == 0 and math.isnan(found.rmse) and math.isnan(found.r2)


def test_baseline_predicts_the_training_mean() -> None:
    actual = np.random.default_rng(0).lognormal(size=1_000)
    mean = float(actual.mean())
    sums = sums_of(actual, actual * 1.1, mean).baseline()
    assert sums == sums_of(actual, np.full(1_000, mean), mean)
    found = metrics(sums, 3, 0.0)
    assert abs(found.r2) < 1e-15 and found.rmse == pytest.approx(actual.std(), rel=1e-13)


def test_bias_is_predicted_minus_actual() -> None:
    actual = np.arange(10.0)
    found = part_of_rows("city", "Oslo", sums_of(actual, actual + 2))
    assert (found.column, found.value, found.rows, found.bias) == ("city", "Oslo", 10, 2.0)
    assert found.r2 == pytest.approx(sk.r2_score(actual, actual + 2), rel=1e-14)


@given(cut=st.integers(0, 100))
def test_sums_merge(cut: int) -> None:
    random = np.random.default_rng(cut)
    actual, predicted = random.normal(size=(2, 100))
    parts = sums_of(actual[:cut], predicted[:cut], 0.3), sums_of(actual[cut:], predicted[cut:], 0.3)
    assert parts[0].merge(parts[1]) == sums_of(actual, predicted, 0.3)
    assert parts[1].merge(parts[0]) == parts[0].merge(parts[1])

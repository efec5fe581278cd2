"""The RMSE of every round beside XGBoost's own; over several workers: `test_boost.py`."""

import mmap
import sys
from typing import Any

import numpy as np
import psutil
import pytest
import xgboost as xgb

from tasks.engine import round_error
from tasks.engine.batches import Float32
from tasks.engine.round_error import CHUNK_ROWS, round_errors, sum_of_squares


def matrix(rows: int, seed: int, like: Any = None) -> Any:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 4)).astype(np.float32)
    label = 96 + features[:, 0] * features[:, 1] + rng.normal(size=rows)
    return xgb.QuantileDMatrix(features, label.astype(np.float32), ref=like)


class _Both(xgb.callback.TrainingCallback):
    """Collects ours beside XGBoost's, by name: (rounds, 2)."""

    def __init__(self, errors: Any) -> None:
        self.errors = errors
        self.found: dict[str, list[tuple[float, float]]] = {}

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        for name, rmse in self.errors.rmse(model, evals_log).items():
            self.found.setdefault(name, []).append((rmse, evals_log[name]["rmse"][-1]))
        return False


@pytest.mark.parametrize("given_back", [False, True])
def test_as_xgboost_has_it_and_after_a_resume(
    given_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given_back:
        monkeypatch.setattr(round_error, "GIVEN_BACK_BYTES", 0)
    train = matrix(5_000, 0)
    valid = matrix(700, 1, train)
    evals = [(train, "train"), (valid, "valid")]
    model = None
    for rounds in (3, 4):
        both = _Both(round_errors({"train": train, "valid": valid}, "cpu"))
        params = {"base_score": 96.0, "max_depth": 3}
        model = xgb.train(
            params,
            train,
            rounds,
            evals=evals,
            verbose_eval=False,
            xgb_model=model,
            callbacks=[both],
        )
        assert {name: len(values) for name, values in both.found.items()} == {
            "train": rounds,
            "valid": rounds,
        }
        for values in both.found.values():
            ours, theirs = np.array(values).T
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
            assert len(set(ours)) == rounds
    # what XGBoost goes on with is not what was given back
    assert model is not None
    undisturbed = xgb.train({"base_score": 96.0, "max_depth": 3}, train, 7)
    assert model.save_raw("ubj") == undisturbed.save_raw("ubj")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep it")
def test_memory_of_a_copy_is_given_back() -> None:
    margin = np.ones(16 << 20, np.float32)[3:]
    before = psutil.Process().memory_info().rss
    round_error._give_back(margin)
    assert before - psutil.Process().memory_info().rss > 0.95 * margin.nbytes
    assert margin.sum(dtype=np.float64) < 3 * mmap.PAGESIZE


def test_a_side_without_rows() -> None:
    empty = xgb.QuantileDMatrix(np.empty((0, 4), np.float32), np.empty(0, np.float32))
    train = matrix(50, 0)
    errors = round_errors({"train": train, "valid": empty}, "cpu")
    with np.errstate(invalid="ignore"):
        found = errors.rmse(xgb.train({}, train, 1), {})
    assert found["train"] > 0 and np.isnan(found["valid"])


def test_what_xgboost_refuses_is_its_own_error() -> None:
    train = matrix(50, 0)
    wider = xgb.QuantileDMatrix(np.zeros((50, 5), np.float32), np.zeros(50, np.float32))
    errors = round_errors({"train": wider}, "cpu")
    with pytest.raises(xgb.core.XGBoostError, match=r"[Nn]umber of columns"):
        errors.rmse(xgb.train({}, train, 1), {})


@pytest.mark.parametrize("rows", [1, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS - 5])
def test_sums_of_squares(rows: int) -> None:
    rng = np.random.default_rng(rows)
    label: Float32 = rng.normal(96, 5, rows).astype(np.float32)
    margin: Float32 = rng.normal(96, 5, rows).astype(np.float32)
    terms = (margin - label) ** 2
    assert terms.dtype == np.float32
    exact = np.sum(terms.astype(np.longdouble))
    assert sum_of_squares(margin, label) == pytest.approx(float(exact), rel=1e-14)

"""XGBoost without scikit-learn's classes: it boosts as ever, and nobody else misses anything."""

import subprocess
import sys

import pytest

BOOST = """
import numpy as np, xgboost
X = np.arange(40, dtype=np.float32).reshape(20, 2)
model = xgboost.train({}, xgboost.QuantileDMatrix(X, X[:, 0]), 2)
assert model.inplace_predict(X).std() > 0
"""


def run(code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("first", "is_whole"), [("", False), ("import sklearn.base", True), ("import xgboost", True)]
)
def test_what_comes_first_decides(first: str, is_whole: bool) -> None:
    found = run(
        f"""
import sys
{first}
import tasks.engine.lean_xgboost
{BOOST}
from xgboost.compat import SKLEARN_INSTALLED
print(SKLEARN_INSTALLED, "scipy.stats" in sys.modules)
from sklearn.linear_model import LinearRegression
assert LinearRegression().fit(X, X[:, 0]).score(X, X[:, 0]) > 0.99
"""
    )
    assert found.split() == [str(is_whole), str(is_whole)]

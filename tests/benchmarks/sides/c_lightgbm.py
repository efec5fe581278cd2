"""LightGBM with trees of the same depth and number of leaves; at most 255 bins."""

import json
import os
import sys

import lightgbm as lgb
from sklearn.metrics import r2_score

from tests.benchmarks.sides.load import load, test_rows

folder, seed = sys.argv[1], int(sys.argv[2])

X, y = load(folder)
test = test_rows(len(y), seed)
X_test, y_test = X[test], y[test]
parameters = {
    "objective": "regression",
    "max_depth": 6,
    "num_leaves": 64,
    "learning_rate": 0.1,
    "max_bin": 255,
    "num_threads": os.cpu_count(),
    "verbose": -1,
}
matrix = lgb.Dataset(X[~test], y[~test], params=parameters).construct()
del X, y
booster = lgb.train(parameters, matrix, num_boost_round=100)
print(json.dumps({"r2": r2_score(y_test, booster.predict(X_test))}))

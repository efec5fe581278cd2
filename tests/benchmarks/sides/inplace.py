"""XGBoost's `inplace_predict` of a whole table in memory, which is read before and not counted."""

import json
import sys
import time

import xgboost as xgb

from tests.benchmarks.sides.load import load

X, y = load(sys.argv[1])
parameters = {"max_depth": 6, "learning_rate": 0.1, "tree_method": "hist"}
some = slice(100_000)
booster = xgb.train(parameters, xgb.QuantileDMatrix(X[some], y[some]), num_boost_round=100)
booster.inplace_predict(X[some])  # threads are there, memory is touched
began = time.monotonic()
booster.inplace_predict(X)
print(json.dumps({"steps_s": {"predict": time.monotonic() - began}}))

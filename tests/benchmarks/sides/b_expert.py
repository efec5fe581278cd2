"""An expert's script: Arrow into one array, XGBoost's quantile matrix, no scaler."""

import json
import os
import sys

import xgboost as xgb
from sklearn.metrics import r2_score

from tests.benchmarks.sides.load import load, test_rows

folder, seed = sys.argv[1], int(sys.argv[2])

X, y = load(folder)
test = test_rows(len(y), seed)
X_test, y_test = X[test], y[test]
matrix = xgb.QuantileDMatrix(X[~test], y[~test], max_bin=256, enable_categorical=True)
del X, y
booster = xgb.train(
    {
        "max_depth": 6,
        "learning_rate": 0.1,
        "max_bin": 256,
        "tree_method": "hist",
        "nthread": os.cpu_count(),
    },
    matrix,
    num_boost_round=100,
)
print(json.dumps({"r2": r2_score(y_test, booster.inplace_predict(X_test))}))

"""scikit-learn's HistGradientBoostingRegressor: the same depth and leaves, at most 255 bins."""

import json
import sys

from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import r2_score

from tests.benchmarks.sides.load import load, test_rows

folder, seed = sys.argv[1], int(sys.argv[2])

X, y = load(folder)
test = test_rows(len(y), seed)
X_train, X_test, y_train, y_test = X[~test], X[test], y[~test], y[test]
del X, y
model = HistGradientBoostingRegressor(
    max_iter=100,
    max_depth=6,
    max_leaf_nodes=64,
    learning_rate=0.1,
    max_bins=255,
    early_stopping=False,
)
model.fit(X_train, y_train)
print(json.dumps({"r2": r2_score(y_test, model.predict(X_test))}))

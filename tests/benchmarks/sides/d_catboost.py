"""CatBoost with its symmetric trees of the same depth; at most 254 borders, that is 255 bins."""

import json
import sys

import pandas as pd
from catboost import CatBoostRegressor, Pool
from sklearn.metrics import r2_score

from tests.benchmarks.sides.load import load, test_rows

folder, seed = sys.argv[1], int(sys.argv[2])

X, y = load(folder)
texts = list(X.select_dtypes("category")) if isinstance(X, pd.DataFrame) else []
for name in texts:  # it takes no missing category
    X[name] = X[name].cat.add_categories("").fillna("")
test = test_rows(len(y), seed)
X_test, y_test = X[test], y[test]
pool = Pool(X[~test], y[~test], cat_features=texts)
del X, y
model = CatBoostRegressor(
    iterations=100,
    depth=6,
    learning_rate=0.1,
    border_count=254,
    thread_count=-1,
    random_seed=seed,
    allow_writing_files=False,
    verbose=False,
)
model.fit(pool)
print(json.dumps({"r2": r2_score(y_test, model.predict(X_test))}))

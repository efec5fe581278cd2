"""What users write: pandas, scikit-learn's split and scaler, XGBRegressor."""

import json
import sys

import pandas as pd
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from xgboost import XGBRegressor

folder, seed = sys.argv[1], int(sys.argv[2])

frame = pd.read_parquet(folder)
X, y = frame.drop(columns="y"), frame["y"]
texts = list(X.select_dtypes(exclude="number"))
numbers = list(X.select_dtypes("number"))
for name in texts:
    X[name] = X[name].astype("category")
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=seed)
scaler = StandardScaler()
if texts:
    X_train[numbers] = scaler.fit_transform(X_train[numbers])
    X_test[numbers] = scaler.transform(X_test[numbers])
else:
    X_train = scaler.fit_transform(X_train)
    X_test = scaler.transform(X_test)
model = XGBRegressor(
    n_estimators=100,
    max_depth=6,
    learning_rate=0.1,
    max_bin=256,
    tree_method="hist",
    enable_categorical=True,
    n_jobs=-1,
)
model.fit(X_train, y_train)
print(json.dumps({"r2": r2_score(y_test, model.predict(X_test))}))

"""The least that Prefect and MLflow cost: an empty flow on the temporary server, one logged model.

In the current folder, with stores of its own.
"""

import json
import os

os.environ |= {
    "PREFECT_HOME": os.path.abspath("prefect"),
    # without these two the temporary server often fails to start on a first run
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}

import mlflow
from mlflow.models import infer_signature
from prefect import flow
from sklearn.datasets import make_regression
from xgboost import XGBRegressor


@flow
def nothing() -> None:
    pass


def log_one_model() -> float:
    X, y = make_regression(1000, 5, noise=0.1, random_state=0)
    model = XGBRegressor(n_estimators=100, max_depth=3, learning_rate=0.1).fit(X[:800], y[:800])
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    with mlflow.start_run():
        mlflow.xgboost.log_model(model, name="model", signature=infer_signature(X, y))
    return float(model.score(X[800:], y[800:]))


if __name__ == "__main__":
    nothing()
    print(json.dumps({"r2": log_one_model()}))

"""Predictions of one model by XGBoost's own predictor and by nvForest, rows in the GPU's memory."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xgboost as xgb

device, rows = sys.argv[1], int(sys.argv[2])
FEATURES, REPEATS = 28, 5


def best(call: Callable[[], Any], wait: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.monotonic()
        call()
        wait()
        times.append(time.monotonic() - began)
    return min(times)


def main() -> None:
    import nvforest

    rng = np.random.default_rng(0)
    x: Any = rng.random((50_000, FEATURES), dtype=np.float32)
    matrix = xgb.QuantileDMatrix(x, x[:, 0] * x[:, 1] + x[:, 2])
    booster = xgb.train({"max_depth": 6, "base_score": 0, "device": device}, matrix, 100)
    wait: Callable[[], None] = lambda: None  # noqa: E731
    x = rng.random((rows, FEATURES), dtype=np.float32)
    if device == "cuda":
        import cupy

        x, wait = cupy.asarray(x), cupy.cuda.get_current_stream().synchronize
    with TemporaryDirectory() as folder:
        path = Path(folder) / "booster.ubj"
        booster.save_model(path)
        kind = "gpu" if device == "cuda" else "cpu"
        forest = nvforest.load_model(path, device=kind, precision="single")
    forest.optimize(data=x)
    theirs = best(lambda: forest.predict(x), wait)
    own = best(lambda: booster.inplace_predict(x, predict_type="margin"), wait)
    apart = abs(forest.predict(x)[:, 0] - booster.inplace_predict(x, predict_type="margin")).max()
    found = {"XGBoost": own, "nvForest": theirs}
    print(json.dumps({"seconds": found, "apart": float(apart)}))


if __name__ == "__main__":
    main()

"""The bare script: cuDF into XGBoost's QuantileDMatrix, batch by batch, without anything else.

On the CPU it is pandas, for trying it out.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import xgboost as xgb

folder, device, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if device == "cuda":
    import cudf as frames
    import cupy as xp

    from tests.gpu.pool import use_pool

    use_pool()
else:
    import numpy as xp
    import pandas as frames

TEST_SHARE = 0.2
seconds: dict[str, float] = {"read": 0.0}


def read(path: Path) -> tuple[Any, Any, Any]:
    began = time.monotonic()
    frame = frames.read_parquet(path)
    y = xp.asarray(frame.pop("y").values)
    x = xp.ascontiguousarray(xp.asarray(frame.values, dtype=np.float32))
    number = int(path.stem.rpartition("-")[2])
    test = xp.random.default_rng(number).random(len(y)) < TEST_SHARE
    seconds["read"] += time.monotonic() - began
    return x, y, test


class Batches(xgb.DataIter):
    def __init__(self) -> None:
        super().__init__()
        self.files = sorted(folder.glob("*.parquet"))
        self.reset()

    def reset(self) -> None:
        self.at = 0

    def next(self, input_data: Any) -> bool:
        if self.at == len(self.files):
            return False
        x, y, test = read(self.files[self.at])
        input_data(data=x[~test], label=y[~test])
        self.at += 1
        return True


def main() -> None:
    began = time.monotonic()
    batches = Batches()
    matrix = xgb.QuantileDMatrix(batches, max_bin=256)
    seconds["read and bin"] = time.monotonic() - began
    boosted = time.monotonic()
    parameters = {"max_depth": 6, "learning_rate": 0.1, "max_bin": 256, "device": device}
    booster = xgb.train(parameters, matrix, rounds)
    seconds["boost"] = time.monotonic() - boosted
    scored = time.monotonic()
    count = total = squares = errors = 0.0
    for path in batches.files:
        x, y, test = read(path)
        actual = y[test]
        predicted = booster.inplace_predict(x[test])
        count += len(actual)
        total += float(actual.sum())
        squares += float((actual**2).sum())
        errors += float(((actual - predicted) ** 2).sum())
    seconds["score"] = time.monotonic() - scored
    seconds["total"] = time.monotonic() - began
    used = json.loads(booster.save_config())["learner"]["generic_param"]["device"]
    r2 = 1 - errors / (squares - total**2 / count)
    print(json.dumps({"seconds": seconds, "r2": r2, "device": used}))


if __name__ == "__main__":
    main()

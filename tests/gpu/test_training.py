"""A training on GPUs: as good as the CPU's, and its model predicts where there is none."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.conftest import Boostline, clean_environment
from tests.engine.tables import write
from tests.engine.test_profile import table

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

PREDICT = """
import sys
import numpy as np, pandas as pd
from tasks.engine.scoring import Scorer
scorer = Scorer.load(sys.argv[1])
np.save(sys.argv[3], scorer.predict(pd.read_parquet(sys.argv[2])))
"""


def learnable(rows: int = 60_000) -> pd.DataFrame:
    frame = table(rows)
    frame["y"] = 3 * np.sin(frame["plain"]) + frame["flag"] * 2 + (frame["colour"] == "red")
    frame["y"] += np.random.default_rng(3).normal(0, 0.3, rows)
    return frame


@pytest.fixture
def _data(boostline: Boostline) -> None:
    write(boostline.folder / "data", {"a.parquet": learnable()}, row_group_rows=5_000)


ARGUMENTS = ("--data", "data", "--target", "y", "--set", "boost.n_estimators=60")


@pytest.mark.usefixtures("_data")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="plain"),
        pytest.param(["boost.subsample=0.7", "boost.colsample_bytree=0.8"], id="sampled"),
    ],
)
def test_r2_is_that_of_the_cpu(boostline: Boostline, settings: list[str]) -> None:
    found = {}
    for kind in ("local", "cuda"):
        more = [word for each in [f"cluster.kind={kind}", *settings] for word in ("--set", each)]
        found[kind] = boostline.train(*ARGUMENTS, *more)
    assert (found["local"].device, found["cuda"].device) == ("cpu", "cuda")
    assert found["cuda"].rows == found["local"].rows
    assert found["cuda"].dataset_digest == found["local"].dataset_digest
    assert found["cuda"].r2 == pytest.approx(found["local"].r2, abs=0.002)


@pytest.mark.usefixtures("_data")
def test_a_model_of_gpus_predicts_without_one(boostline: Boostline, tmp_path: Path) -> None:
    kind = ("--set", "cluster.kind=auto")
    summary = boostline.train(*ARGUMENTS, *kind)
    assert summary.device == "cuda"
    assert summary.model_sha256
    (model,) = (boostline.home / "models").iterdir()
    rows = boostline.folder / "data" / "a.parquet"
    predicted = {}
    for name, visible in (("cpu", ""), ("again", "")):
        out = tmp_path / f"{name}.npy"
        subprocess.run(
            [sys.executable, "-c", PREDICT, str(model), str(rows), str(out)],
            env={**clean_environment(), "CUDA_VISIBLE_DEVICES": visible},
            check=True,
        )
        predicted[name] = np.load(out)
    actual = pd.read_parquet(rows)["y"].to_numpy()
    errors = float(((predicted["cpu"] - actual) ** 2).mean())
    assert 1 - errors / float(actual.var()) == pytest.approx(summary.r2, abs=0.03)
    np.testing.assert_array_equal(predicted["cpu"], predicted["again"])


def test_what_gpus_do_is_told() -> None:
    from infra.gpu_telemetry import sample_gpu

    found: dict[str, Any] = sample_gpu()
    host = os.uname().nodename
    assert all(name.startswith(f"{host}/gpu_") for name in found)
    assert {name.partition("gpu_")[2].partition("_")[2] for name in found} == {
        "utilization_percentage",
        "memory_usage_megabytes",
        "memory_usage_percentage",
        "power_usage_watts",
    }

import datetime as dt
import decimal
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from mlflow import MlflowClient

from tasks.engine.scoring import Column, Encoder, Scorer, TamperedModelError
from tasks.model import (
    MANIFEST_TAG,
    ModelInfo,
    fetch_scorer,
    log_model,
    request_rows,
    requirements,
    save_model,
)

ROWS = 60
ENCODER = Encoder(
    (
        Column("size [m²]", "number", 5.0, 2.0),
        Column("rooms", "number", 3.0, 1.5),
        Column("floor", "number"),
        Column("lift", "bool"),
        Column("cut", "category", categories=("Fair", "Good", "Ideal")),
        Column("zip", "category", categories=("10115", "20095")),
        Column("sold", "time", 1.7e9, 1e7),
        Column("built", "time", 1e9, 1e8),
        Column("fee", "decimal"),
        Column("stay", "duration", 0.0, 3600.0),
    )
)


def raw_rows() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    size = draw.normal(5, 2, ROWS)
    size[::5] = np.nan
    seconds = pd.Series(draw.integers(1_600_000_000, 1_800_000_000, ROWS))
    frame = pd.DataFrame(
        {
            "size [m²]": size,
            "rooms": draw.integers(1, 9, ROWS),
            "floor": pd.Series(draw.integers(0, 9, ROWS), dtype="Int64"),
            "lift": pd.Series(draw.random(ROWS) < 0.5, dtype="boolean"),
            "cut": pd.Series(draw.choice(["Fair", "Good", "Ideal", "new"], ROWS), dtype="category"),
            "zip": draw.choice([10115, 20095], ROWS),
            "sold": pd.to_datetime(seconds, unit="s", utc=True).dt.tz_convert("Europe/Berlin"),
            "built": [dt.date(int(year), 5, 1) for year in draw.integers(1950, 2020, ROWS)],
            "fee": [decimal.Decimal(int(cents)) / 100 for cents in draw.integers(0, 9999, ROWS)],
            "stay": pd.to_timedelta(draw.integers(0, 10**6, ROWS), unit="ms"),
            "not a feature": "x",
        }
    )
    for name in ("floor", "lift", "cut", "sold", "built", "fee", "stay"):
        frame.loc[draw.random(ROWS) < 0.2, name] = None
    return frame


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return raw_rows()


@pytest.fixture(scope="module")
def scorer(frame: pd.DataFrame) -> Scorer:
    features = ENCODER.encode(frame)
    target = np.nansum(features, axis=1)
    matrix = xgb.DMatrix(
        features, target, feature_types=ENCODER.feature_types, enable_categorical=True
    )
    parameters = {"max_depth": 4, "base_score": 0.0, "nthread": 1, "min_child_weight": 0}
    return Scorer(ENCODER, xgb.train(parameters, matrix, 30), 1234.5, threads=1)


@pytest.fixture(scope="module")
def store(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copytree(mlflow_store, folder, dirs_exist_ok=True)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    client.create_experiment("homes", artifact_location=str(folder / "artifacts"))
    return client


@pytest.fixture(scope="module")
def scorer_folder(scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    scorer.save(folder)
    return folder


@pytest.fixture(scope="module")
def logged(store: MlflowClient, scorer_folder: Path, frame: pd.DataFrame) -> tuple[str, ModelInfo]:
    experiment = store.get_experiment_by_name("homes")
    assert experiment is not None
    run_id = store.create_run(experiment.experiment_id).info.run_id
    store.log_metric(run_id, "test_r2", 0.5, step=7)
    info = log_model(
        store,
        run_id,
        scorer_folder,
        input_example=frame.head(4),
        float_columns=["size [m²]"],
        registered_name="homes",
        metadata={"dataset_digest": "d1"},
        metrics=["test_r2"],
    )
    return run_id, info


def test_the_model_belongs_to_its_run(
    store: MlflowClient, logged: tuple[str, ModelInfo], scorer_folder: Path, frame: pd.DataFrame
) -> None:
    run_id, info = logged
    assert info == ModelInfo(f"models:/{info.model_id}", info.model_id, "1")
    assert [m.model_id for m in store.get_run(run_id).outputs.model_outputs] == [info.model_id]
    model = store.get_logged_model(info.model_id)
    assert (model.source_run_id, str(model.status), model.model_type) == (
        run_id,
        "READY",
        "regressor",
    )
    assert [(m.key, m.value, m.step) for m in model.metrics] == [("test_r2", 0.5, 7)]
    version = store.get_model_version("homes", "1")
    assert (version.run_id, version.source) == (run_id, info.model_uri)
    # a retry finds what is there
    again = log_model(
        store, run_id, scorer_folder, input_example=frame.head(4), registered_name="homes"
    )
    assert again == info
    assert len(store.get_metric_history(run_id, "test_r2")) == 1


def test_a_category_that_is_a_number_of_32_bits(tmp_path: Path) -> None:
    rows = pd.DataFrame({"step": np.array([0.1, 0.2, 0.5, np.nan] * 10, np.float32)})
    encoder = Encoder((Column("step", "category", categories=("0.1", "0.2", "0.5")),))
    matrix = xgb.DMatrix(
        encoder.encode(rows),
        np.arange(40.0) % 4,
        feature_types=encoder.feature_types,
        enable_categorical=True,
    )
    booster = xgb.train({"base_score": 0.0, "min_child_weight": 0}, matrix, 3)
    Scorer(encoder, booster, 1.0).save(tmp_path / "scorer")
    save_model(tmp_path / "model", tmp_path / "scorer", input_example=rows.head(4))
    spelled = request_rows(encoder, rows.head(4))["step"]
    assert spelled.tolist() == ["0.1", "0.2", "0.5", None]


def test_nothing_in_the_artifact_is_pickled(scorer_folder: Path, frame, tmp_path: Path) -> None:
    started = time.monotonic()
    save_model(tmp_path / "model", scorer_folder, input_example=frame.head(4))
    assert time.monotonic() - started < 10
    files = {str(p.relative_to(tmp_path / "model")) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        "MLmodel",
        "boostline_model.py",
        "artifacts/scorer/booster.ubj",
        "artifacts/scorer/encoder.json",
        "artifacts/scorer/manifest.json",
        "conda.yaml",
        "input_example.json",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
    }
    pinned = (tmp_path / "model" / "requirements.txt").read_text().split()
    assert pinned == requirements()
    assert [pin.partition("==")[0].replace("-cu13", "") for pin in pinned] == [
        "mlflow",
        "xgboost",
        "numpy",
        "pandas",
        "pyarrow",
    ]


LOAD = """
import sys
BLOCKED = {"dask", "distributed", "prefect", "tasks", "flows", "infra"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
import pandas as pd
import mlflow.pyfunc
frame = pd.read_json(sys.argv[2], orient="split", dtype=False, convert_dates=False)
predictions = mlflow.pyfunc.load_model(sys.argv[1]).predict(frame)
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
print(",".join(value.hex() for value in predictions))
"""


@pytest.mark.slow
def test_it_loads_without_this_project_dask_prefect_and_pickle(
    store: MlflowClient, logged, scorer: Scorer, frame: pd.DataFrame, tmp_path: Path
) -> None:
    rows = request_rows(ENCODER, frame)
    (tmp_path / "rows.json").write_text(json.dumps(rows.to_dict("split")))
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, "models:/homes/1", str(tmp_path / "rows.json")],
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": store.tracking_uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    expected = ",".join(value.hex() for value in scorer.predict(frame).tolist())
    assert loaded.stdout.strip() == expected


def test_it_takes_the_raw_frame_and_what_pandas_makes_of_parts_of_it(
    logged, scorer: Scorer, scorer_folder: Path, frame: pd.DataFrame, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", scorer_folder, input_example=frame.head(4))
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    expected = scorer.predict(frame)
    np.testing.assert_array_equal(model.predict(frame), expected)
    shuffled = frame[list(frame.columns[::-1])].astype({"rooms": "float32", "cut": "str"})
    np.testing.assert_array_equal(model.predict(shuffled), expected)
    whole = frame.assign(**{"size [m²]": 5})
    np.testing.assert_array_equal(model.predict(whole), scorer.predict(whole))
    np.testing.assert_array_equal(
        model.predict(frame.convert_dtypes(dtype_backend="pyarrow")), expected
    )
    booster = tmp_path / "model" / "artifacts" / "scorer" / "booster.ubj"
    booster.write_bytes(booster.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"booster\.ubj is not the file that was saved"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    # another model with a manifest that fits: the code knows the digest of its own
    Scorer(ENCODER, scorer.booster.copy(), 0.0).save(booster.parent)
    with pytest.raises(ValueError, match=r"manifest\.json is not the file that was saved"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


def test_the_stored_scorer_is_the_runs_own_and_tampering_is_refused(
    store: MlflowClient, logged, scorer: Scorer, frame: pd.DataFrame, tmp_path: Path
) -> None:
    _, info = logged
    for place, uri in enumerate((info.model_uri, "models:/homes/1")):
        stored = fetch_scorer(store, uri, tmp_path / str(place))
        assert stored.load(threads=1).predict(frame).tobytes() == scorer.predict(frame).tobytes()
    # files and manifest changed together: the tracking server still knows the digest
    other = Scorer(ENCODER, scorer.booster.copy(), scorer.mean + 1)
    other.save(stored.folder)
    with pytest.raises(TamperedModelError, match=r"manifest\.json is not the file that was saved"):
        stored.load()
    with pytest.raises(ValueError, match="names no model"):
        fetch_scorer(store, "runs:/x/model", tmp_path)
    model = store.create_logged_model(store.get_run(logged[0]).info.experiment_id, name="foreign")
    with pytest.raises(ValueError, match=MANIFEST_TAG):
        fetch_scorer(store, f"models:/{model.model_id}", tmp_path)


@pytest.fixture
def served(store: MlflowClient, logged: tuple[str, ModelInfo], tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    with (tmp_path / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "-m", logged[1].model_uri, "-h", "127.0.0.1", "-p", str(port), "-w", "1"],
            env={
                **os.environ,
                # the server is started by the name `uvicorn`, looked up in PATH
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "MLFLOW_TRACKING_URI": store.tracking_uri,
                "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            },
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            except OSError:
                said = (tmp_path / "serve.log").read_text()
                assert server.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(40)


def asked(url: str, body: bytes) -> list[float]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=80) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.slow
def test_the_served_model_answers_with_the_runs_predictions(
    served: str, logged, store: MlflowClient, scorer: Scorer, frame: pd.DataFrame
) -> None:
    rows = request_rows(ENCODER, frame)
    expected = scorer.predict(frame).tolist()
    split = rows.to_dict("split", index=False)
    assert asked(served, json.dumps({"dataframe_split": split}).encode()) == expected
    records = rows.to_dict("records")
    assert asked(served, json.dumps({"dataframe_records": records}).encode()) == expected
    example = Path(store.get_logged_model(logged[1].model_id).artifact_location)
    body = (example / "serving_input_example.json").read_bytes()
    assert asked(served, body) == expected[:4]

"""Scoring with a recorded model: the same numbers everywhere, the same bytes on any cluster."""

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.predictions import ScorerRef, predict_table
from tasks.engine.settings import load_config
from tests.conftest import Boostline
from tests.flows.test_outputs import with_dictionary

pytestmark = pytest.mark.slow


def test_a_recorded_model_predicts_as_its_run_did(
    boostline: Boostline, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shared_data / "housing.csv"
    summary = boostline.train(
        "--data", str(data), "--target", "median_house_value", "--set", "track.model=houses"
    )
    for out in ("whole.parquet", "whole.csv", "whole.csv.gz", "folder"):
        ran = boostline("predict", "houses", str(data), out, "--keep", "median_house_value")
        assert ran.returncode == 0, ran.stderr
    whole = pd.read_parquet(boostline.folder / "whole.parquet")
    assert with_dictionary(boostline.folder / "whole.parquet") == ["median_house_value"]
    raw = pd.read_csv(data)
    assert list(whole.columns) == ["median_house_value", "prediction"]
    assert np.array_equal(whole["median_house_value"], raw["median_house_value"])
    for other in (
        pd.read_csv(boostline.folder / "whole.csv", float_precision="round_trip"),
        pd.read_csv(boostline.folder / "whole.csv.gz", float_precision="round_trip"),
        pd.read_parquet(boostline.folder / "folder"),
    ):
        assert np.array_equal(other["prediction"], whole["prediction"])

    parts = sorted((boostline.home / "predictions").glob("*/*.parquet"))
    run = pd.concat([pd.read_parquet(part) for part in parts])
    assert sorted(run["predicted"]) == sorted(whole["prediction"])
    test = run[run["side"] == 2]
    r2 = (
        1
        - ((test.actual - test.predicted) ** 2).sum()
        / ((test.actual - test.actual.mean()) ** 2).sum()
    )
    assert r2 == pytest.approx(summary.r2, rel=1e-12)

    uri = f"sqlite:///{boostline.home / 'mlflow.db'}"
    # not mlflow.set_tracking_uri, which would stay for the tests that follow
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    loaded = mlflow.pyfunc.load_model("models:/houses/1")
    assert np.array_equal(np.asarray(loaded.predict(raw)), whole["prediction"])


def test_categories_read_as_they_did_in_training(
    boostline: Boostline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.DataFrame({"y": np.arange(400.0) % 4})
    rows["code"] = rows["y"].map({0: "01", 1: "02", 2: "True", 3: "A7"})
    rows["zone"] = rows["y"] + 0.5
    rows["day"] = [dt.date(2024, 1, 1 + int(y)) for y in rows["y"]]
    rows.to_parquet(boostline.folder / "rows.parquet")
    settings = ("track.model=codes", "boost.n_estimators=2", 'data.categories=["day", "zone"]')
    found = boostline.train(
        "--data", "rows.parquet", "--target", "y", *map("--set={}".format, settings)
    )
    assert found.r2 > 0.1
    ran = boostline("predict", "codes", "rows.parquet", "of-parquet.parquet")
    assert ran.returncode == 0 and "training did not know" not in ran.stdout, ran
    expected = pd.read_parquet(boostline.folder / "of-parquet.parquet")["prediction"]
    assert expected.nunique() == 4
    # each file's values alone look like numbers, or like booleans
    for code in ("01", "True"):
        some = rows[rows["code"] == code]
        some.to_csv(boostline.folder / "some.csv", index=False)
        ran = boostline("predict", "codes", "some.csv", "of-csv.parquet")
        assert ran.returncode == 0 and "training did not know" not in ran.stdout, ran
        again = pd.read_parquet(boostline.folder / "of-csv.parquet")["prediction"]
        assert np.array_equal(again, expected[some.index])
    # with one value that is no number its texts would be "1.50", which training did not know
    odd = rows.assign(zone=[*rows["zone"].map("{:.2f}".format)[1:], "x"])
    odd.to_csv(boostline.folder / "odd.csv", index=False)
    ran = boostline("predict", "codes", "odd.csv", "of-csv.parquet")
    message = "line 401: 'x' in the column 'zone', whose other values are mostly numbers."
    assert ran.returncode == 2 and message in ran.stderr, ran
    assert ran.stderr.endswith("It was a column of numbers or times in training.\n"), ran.stderr
    assert not list((boostline.home / "scored").iterdir())
    assert len(list((boostline.home / "models").iterdir())) == 1  # the training's

    uri = f"sqlite:///{boostline.home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    served = mlflow.pyfunc.load_model("models:/codes/1")
    for day in (rows["day"], rows["day"].astype(str), pd.to_datetime(rows["day"])):
        assert np.array_equal(
            served.unwrap_python_model().predict(None, rows.assign(day=day)), expected
        )


def test_kept_columns_of_two_types_are_of_one_in_what_is_written(boostline: Boostline) -> None:
    folder = boostline.folder / "data"
    folder.mkdir()
    rows = pd.DataFrame({"n": np.arange(400), "name": ["a", "b"] * 200, "y": np.arange(400.0)})
    rows.to_parquet(folder / "a.parquet")
    rows.assign(n=rows["n"] + 0.5, name="c").to_parquet(folder / "b.parquet")
    settings = ("track.model=mixed", "boost.n_estimators=2")
    boostline.train("--data", "data", "--target", "y", *(f"--set={each}" for each in settings))
    expected = pd.concat([pd.read_parquet(path) for path in sorted(folder.iterdir())])
    for out in ("mixed.parquet", "mixed"):
        ran = boostline("predict", "mixed", "data", out, "--keep", "all")
        assert ran.returncode == 0, ran.stderr
        found = pq.read_table(boostline.folder / out).to_pandas()
        assert found["n"].tolist() == expected["n"].tolist()
        assert found["name"].tolist() == expected["name"].tolist()
    # small files that are read together, of which nothing is kept
    for name in ("a.parquet", "b.parquet"):
        rows.to_parquet(folder / name)
    ran = boostline("predict", "mixed", "data", "alone.parquet")
    assert ran.returncode == 0, ran.stderr
    assert pq.read_metadata(boostline.folder / "alone.parquet").num_rows == 2 * len(rows)
    parts = sorted((boostline.folder / "mixed").iterdir())
    assert len(parts) == 2
    assert pq.read_schema(parts[0]).equals(pq.read_schema(parts[1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["cottages", "DATA", "out.parquet"],
            "no model is registered under that name. Registered are: none. Name one as",
            id="no-such-model",
        ),
        pytest.param(
            ["houses", "DATA", "out.xlsx"],
            "OUT is 'out.xlsx': it must end in .parquet, .csv or .csv.gz, or be a folder's name.",
            id="ending",
        ),
        pytest.param(
            ["houses", "DATA", "out.csv", "--set", "data.rules=['a > 1']"],
            "--set \"data.rules=['a > 1']\" has no meaning for predict: it scores every row, from "
            "the columns that the model was trained on.",
            id="of-training",
        ),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    boostline: Boostline, shared_data: Path, arguments: list[str], message: str
) -> None:
    data = str(shared_data / "housing.csv")
    ran = boostline("predict", *[data if word == "DATA" else word for word in arguments])
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_parts_are_the_same_on_threads_and_on_a_cluster(
    tmp_path: Path, dask_client: Any, boostline: Boostline, shared_data: Path
) -> None:
    data = str(shared_data / "diamonds.csv")
    boostline.train("--data", data, "--target", "price", "--set", "boost.n_estimators=20")
    (model,) = (boostline.home / "models").iterdir()
    manifest = sha256((model / "manifest.json").read_bytes()).hexdigest()
    scorer = ScorerRef(str(model), manifest)
    frame = pd.read_csv(data)
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):  # each too large to be read with another, so there is something to deal
        frame[number::6].to_parquet(folder / f"{number}.parquet", row_group_size=2000)
    config = load_config(data=str(folder), target="price")
    dataset = ingest(config.data, Home(str(tmp_path / "home")))
    columns = scorer.load().encoder.names
    found = []
    with ThreadPoolExecutor(3) as threads:
        for name, client in (("here", None), ("threads", threads), ("there", dask_client)):
            made = predict_table(
                client, dataset.row_groups(), columns, ["price"], scorer, str(tmp_path / name)
            )
            assert len(made.parts) == 6
            found.append([Path(part.uri).read_bytes() for part in made.parts])
    assert found[0] == found[1] == found[2]

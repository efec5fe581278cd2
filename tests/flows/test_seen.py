"""What people see of two trainings of one model, in Prefect and in MLflow."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient
from PIL import Image

from tasks.engine.summary import Summary
from tests.conftest import Boostline
from tests.flows.test_train import mlflow_client

pytestmark = pytest.mark.slow

ARGUMENTS = [
    "--set", "track.model=seen", "--set", "boost.checkpoint_every=10",
    "--set", "cluster.dashboard=true", "--set", "data.rules=['feature_1 < 2']",
    "--set", "data.max_rejected=0.1",
]  # fmt: skip


class Seen:
    """Two trainings of one model, the first of which was made its champion in between."""

    def __init__(self, boostline: Boostline, api: str) -> None:
        self.api = api
        sampled = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.2"}
        first = boostline.train(*ARGUMENTS, "--set", "boost.n_estimators=40", **sampled)
        self.client: MlflowClient = mlflow_client(boostline.home)
        self.client.set_registered_model_alias("seen", "champion", "1")
        second = boostline.train(*ARGUMENTS, "--set", "boost.n_estimators=100", **sampled)
        self.first, self.second = first, second

    def artifacts(self, of: Summary) -> dict[str, Any]:
        query = {"artifacts": {"flow_run_id": {"any_": [of.flow_run_id]}}}
        found = httpx.post(f"{self.api}/artifacts/filter", json=query).json()
        return {each["key"]: each for each in found}

    def log(self, of: Summary) -> list[str]:
        query = {
            "logs": {"flow_run_id": {"any_": [of.flow_run_id]}},
            "sort": "TIMESTAMP_ASC",
        }
        return [
            str(each["message"])
            for each in httpx.post(f"{self.api}/logs/filter", json=query).json()
        ]


@pytest.fixture(scope="module")
def seen(
    boostline_beside: Callable[[Path], Boostline],
    prefect_server: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Seen:
    return Seen(boostline_beside(tmp_path_factory.mktemp("seen")), prefect_server.api_url)


def test_the_artifacts_in_prefect(seen: Seen) -> None:
    found = seen.artifacts(seen.second)
    assert {key: each["type"] for key, each in found.items()} == {
        "seen-progress": "progress",
        "seen-metrics": "table",
        "seen-report": "markdown",
    }
    assert found["seen-progress"]["data"] == 100
    assert found["seen-progress"]["description"].startswith("100 rounds trained · valid R² 0.9")
    table = json.loads(found["seen-metrics"]["data"])
    assert [*table[0]] == ["metric", "this run", "last run", "champion", "difference"]
    shown = f"{seen.second.r2:.4f}", f"{seen.first.r2:.4f}", f"{seen.first.r2:.4f}"
    assert tuple(table[0].values())[:4] == ("test R²", *shown)
    assert re.fullmatch(r"\+0\.\d+ \(better\)", table[0]["difference"])
    assert (
        "champion: version 1. Difference: this run − champion."
        in (found["seen-metrics"]["description"])
    )
    first = seen.artifacts(seen.first)["seen-metrics"]
    assert first["description"].startswith("The first run of this model")


def test_the_report_in_prefect(seen: Seen) -> None:
    report = seen.artifacts(seen.second)["seen-report"]["data"]
    assert report.startswith(f"Test R² **{seen.second.r2:.4f}** (95 %: ")
    assert f"MLflow: run `{seen.second.mlflow_run_id}`" in report
    assert f"- Model: version 2 of `seen`, `{seen.second.model_uri}`" in report
    assert "resumed from round 40" in report
    assert re.search(r"- \d+ rows? (was|were) set aside: breaks 'feature_1 < 2'\.", report)
    pictures = re.findall(r"!\[[^]]+\]\(data:image/png;base64,([^)]+)\)", report)
    assert len(pictures) == 4
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.size[0] > 800
    # Prefect keeps it in its database, a copy for every run
    assert len(report) < 250_000


def test_the_log_in_prefect(seen: Seen) -> None:
    log = seen.log(seen.second)
    for pattern in (
        f"MLflow run: {seen.second.mlflow_run_id} in sqlite:///.*",
        r"Cluster \(local\): 2 workers, 2 threads",
        r"Dask dashboard: http://127\.0\.0\.1:\d+/status",
        "Read demo:regression: 1,000 rows × 6 columns in 1 row group",
        r"\d+ rows to use: \d+ train, \d+ valid, \d+ test",
        r"Target target in the train rows: -?\d+\.\d to \d+\.\d, mean .*, deviation .*",
        r"\d+ rows? (was|were) set aside: breaks 'feature_1 < 2'\.",
        "Going on from the checkpoint of round 40",
        "Training on 1 worker from round 41 on",
        r"Round 100 of 100: valid R² 0\.\d{4}, RMSE \d+\.\d+",
        rf"R² of the test rows: {seen.second.r2:.4f}; RMSE .*",
        rf"Recorded {seen.second.model_uri}, version 2 of seen",
        r"Last run: .*; champion: version 1\. .*",
    ):
        assert [line for line in log if re.fullmatch(pattern, line)], (pattern, log)
    ours = [line for line in log if not re.search("state|Created|Beginning|Finished", line)]
    assert len(ours) < 25, log


def test_the_run_in_mlflow(seen: Seen) -> None:
    run = seen.client.get_run(seen.second.mlflow_run_id)
    tags = run.data.tags
    wanted = {"model": "seen", "data": "demo:regression", "target": "target", "cluster": "local"}
    wanted |= {"device": "cpu", "resumed": "yes", "dataset_digest": seen.second.dataset_digest}
    assert wanted.items() <= tags.items()
    assert seen.client.get_run(seen.first.mlflow_run_id).data.tags["resumed"] == "no"
    note = tags["mlflow.note.content"]
    assert note.startswith(f"Test R² **{seen.second.r2:.4f}** (95 %: ")
    url = tags["prefect.flow_run_url"]
    assert url.endswith(seen.second.flow_run_id)
    assert note.splitlines()[0].endswith(f" [Flow run in Prefect]({url})")
    assert "score rows with `boostline predict seen/2 ROWS OUT`" in note
    found = seen.client.search_runs(
        [run.info.experiment_id], "tags.model = 'seen' and tags.resumed = 'no'"
    )
    assert [each.info.run_id for each in found] == [seen.first.mlflow_run_id]


def test_the_machines_in_mlflow(seen: Seen) -> None:
    metrics = seen.client.get_run(seen.second.mlflow_run_id).data.metrics
    assert metrics["system/workers/number"] == 2
    assert 100 < metrics["system/driver/memory_megabytes"] < 4000
    largest = metrics["system/workers/largest_memory_megabytes"]
    assert 50 < largest < metrics["system/workers/memory_megabytes"] < 2.5 * largest
    assert 0 <= metrics["system/host/memory_percentage"] <= 100
    points = seen.client.get_metric_history(
        seen.second.mlflow_run_id, "system/driver/memory_megabytes"
    )
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    assert len(points) > 2

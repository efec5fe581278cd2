"""A flow run of a deployment whose process is killed, tried again by Prefect's worker."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.engine.home import Home
from tasks.ledger import entries
from tests.conftest import Boostline
from tests.flows.test_train import mlflow_client, read_flow_run, runs_of

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 500


def until(what: str, check: Any) -> Any:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (found := check()):
        assert time.monotonic() < deadline, f"waited {LIMIT_SECONDS} s for {what}"
        time.sleep(0.1)
    return found


@pytest.mark.timeout(1600)
def test_a_retry_goes_on_in_the_same_mlflow_run(
    boostline: Boostline, shared_data: Path, prefect_server: Any
) -> None:
    api = prefect_server.api_url
    environment = {
        **boostline.environment,
        "BOOSTLINE_HOME": str(boostline.home),
        "PREFECT_HOME": str(boostline.folder / "prefect"),
    }
    prefect = [sys.executable, "-m", "prefect"]
    deploy = ["--no-prompt", "deploy", "--prefect-file"]
    for command in (
        ["work-pool", "create", "boostline", "--type", "process", "--overwrite"],
        [*deploy, "deployments/prefect.yaml", "--name", "nightly-cpu"],
    ):
        subprocess.run(
            [*prefect, *command], cwd=ROOT, env=environment, check=True, capture_output=True
        )
    deployment = httpx.get(f"{api}/deployments/name/boostline-train/nightly-cpu").json()
    data = {"source": str(shared_data / "diamonds.csv"), "target": "price"}
    config = {"data": data, "boost": {"n_estimators": 300, "max_depth": 8}}
    run = httpx.post(
        f"{api}/deployments/{deployment['id']}/create_flow_run",
        json={"parameters": {"config": config}, "state": {"type": "SCHEDULED"}},
    ).json()
    worker_log = boostline.folder / "worker.log"
    with worker_log.open("wb") as log:
        worker = subprocess.Popen(
            [*prefect, "worker", "start", "--pool", "boostline"],
            cwd=ROOT,
            env={**environment, "PREFECT_WORKER_QUERY_SECONDS": "2"},
            stdout=log,
            stderr=log,
        )
    try:
        until(
            "the second checkpoint",
            lambda: list(boostline.home.glob("checkpoints/*/round-000040.json")),
        )
        (entry,) = entries(Home(str(boostline.home)))
        os.kill(entry.pid, signal.SIGKILL)
        until(
            "Prefect to notice",
            lambda: read_flow_run(prefect_server, run["id"])["state_type"] == "CRASHED",
        )
        # the worker tells it once more, some seconds later, and would call a retry crashed too
        time.sleep(12)
        retried = httpx.post(
            f"{api}/flow_runs/{run['id']}/set_state",
            json={"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True},
        )
        assert retried.status_code == 201
        until(
            "the retry",
            lambda: (
                read_flow_run(prefect_server, run["id"])["state_type"]
                not in ("SCHEDULED", "PENDING", "RUNNING")
            ),
        )
    finally:
        worker.terminate()
        worker.wait(120)
    told = worker_log.read_text()
    assert read_flow_run(prefect_server, run["id"])["state_type"] == "COMPLETED", told
    (recorded,) = runs_of(mlflow_client(boostline.home))
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["prefect.flow_run_id"] == run["id"]
    assert int(recorded.data.tags["resumed_from_round"]) >= 40
    client = mlflow_client(boostline.home)
    steps = [
        point.step for point in client.get_metric_history(recorded.info.run_id, "round/train_rmse")
    ]
    assert steps == list(range(1, 301))

"""Servers that go away while a run trains: nothing recorded is lost, and the run goes on."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tasks.engine.home import Home
from tasks.engine.summary import Summary
from tasks.ledger import entries, held
from tests.conftest import Boostline, clean_environment
from tests.flows.test_train import read_flow_run, runs_of, wait_for_checkpoint
from tests.mlflow_server import MlflowServer

# whole trainings, servers that start anew, and limits to wait for, beside other tests
pytestmark = pytest.mark.slow

OUTAGE_SECONDS = float(os.environ.get("BOOSTLINE_TEST_OUTAGE", "5"))
ROUNDS = 150


def long_training(shared_data: Path, rounds: int = ROUNDS) -> list[str]:
    return [
        "--data", str(shared_data / "diamonds.csv"), "--target", "price",
        "--set", f"boost.n_estimators={rounds}", "--set", "boost.max_depth=9",
    ]  # fmt: skip


def everything_is_there(client: MlflowClient, run_id: str, rounds: int = ROUNDS) -> None:
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    for name in ("round/train_rmse", "round/valid_rmse", "round/train_r2", "round/valid_r2"):
        steps = [metric.step for metric in client.get_metric_history(run_id, name)]
        assert steps == list(range(1, rounds + 1)), name
    assert "test_r2" in run.data.metrics
    assert len(client.list_artifacts(run_id, "plots")) == 4
    assert len(run.inputs.dataset_inputs) == 1


def test_mlflow_is_away_for_a_while(
    boostline: Boostline, shared_data: Path, mlflow_server: MlflowServer
) -> None:
    summary = boostline.folder / "summary.json"
    arguments = ["train", "--summary", str(summary), *long_training(shared_data)]
    with boostline.start(*arguments, MLFLOW_TRACKING_URI=mlflow_server.uri) as process:
        wait_for_checkpoint(boostline, process, 20)
        mlflow_server.kill()
        time.sleep(OUTAGE_SECONDS)
        mlflow_server.start()
        _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    found = Summary.model_validate_json(summary.read_bytes())
    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    everything_is_there(client, found.mlflow_run_id)
    assert client.get_logged_model(found.model_uri.removeprefix("models:/")).status == "READY"


def test_mlflow_is_away_for_good(
    boostline: Boostline, shared_data: Path, mlflow_server: MlflowServer, prefect_server: Any
) -> None:
    place = {"MLFLOW_TRACKING_URI": mlflow_server.uri}
    more = ["--set", "track.timeout=3", "--set", "track.model=stones"]
    words = [*long_training(shared_data, rounds=100), *more]
    with boostline.start("train", *words, **place) as process:
        wait_for_checkpoint(boostline, process, 20)
        mlflow_server.kill()
        _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    message = err.splitlines()[-1]
    folder = next((boostline.home / "runs").iterdir())
    assert message.startswith(
        "The model is trained, but MLflow has not taken the whole run: after 3 s (track.timeout) "
    )
    assert message.endswith(
        f"Nothing is lost, all of it is kept in {folder}. Once MLflow answers, `boostline record` "
        "finishes the recording."
    )
    flow_run = read_flow_run(prefect_server, folder.name)
    assert flow_run["state_type"] == "FAILED"
    assert "MLflow has not taken the whole run" in flow_run["state"]["message"]

    mlflow_server.start()
    mlflow_server.wait()
    ran = boostline("record", **place)
    assert ran.returncode == 0, ran.stderr
    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    (run,) = runs_of(client)
    assert ran.stdout.startswith(f"Recorded: MLflow run {run.info.run_id}, models:/m-")
    everything_is_there(client, run.info.run_id, rounds=100)
    assert client.get_model_version("stones", "1").run_id == run.info.run_id
    again = boostline("record", **place)
    assert again.stdout == "Nothing waits to be recorded.\n"

    # and where somebody has deleted the run in between, a new one has what the steps recorded
    client.delete_run(run.info.run_id)
    home = Home(str(boostline.home))
    (entry,) = entries(home)
    held_folder = held(home, entry)
    assert held_folder is not None
    held_folder.update(recorded=False)
    held_folder.release()
    assert boostline("record", **place).returncode == 0
    (new,) = runs_of(client)
    assert new.info.run_id != run.info.run_id and new.info.status == "FINISHED"
    assert len(new.inputs.dataset_inputs) == 1
    assert len(client.get_metric_history(new.info.run_id, "round/train_r2")) == 100
    assert new.data.metrics["rows/train"] == run.data.metrics["rows/train"]
    kept = ("version.python", "code_revision", "target", "dataset_digest", "model_sha256")
    assert [new.data.tags.get(name) for name in kept] == [run.data.tags.get(x) for x in kept]


def test_prefect_is_away_for_a_while(
    boostline: Boostline, shared_data: Path, prefect_server: Any
) -> None:
    summary = boostline.folder / "summary.json"
    with boostline.start(
        "train", "--summary", str(summary), *long_training(shared_data)
    ) as process:
        wait_for_checkpoint(boostline, process, 20)
        # stopped, it answers nobody and keeps its port
        os.kill(prefect_server.pid, signal.SIGSTOP)
        try:
            time.sleep(OUTAGE_SECONDS)
        finally:
            os.kill(prefect_server.pid, signal.SIGCONT)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    found = Summary.model_validate_json(summary.read_bytes())
    assert read_flow_run(prefect_server, found.flow_run_id)["state_type"] == "COMPLETED"


@pytest.mark.long
def test_prefects_server_dies(mlflow_store: Path, tmp_path: Path) -> None:
    """Our own one: it is said soon, and the same command goes on."""
    boostline = Boostline(tmp_path, clean_environment(), mlflow_store)
    words = ["--set", "boost.n_estimators=400", "--set", "boost.max_depth=6"]
    retries = {"PREFECT_CLIENT_MAX_RETRIES": "1"}
    with boostline.start("train", *words, **retries) as process:
        wait_for_checkpoint(boostline, process, 20)
        for child in psutil.Process(process.pid).children():
            if any(word.endswith("prefect_child.py") for word in child.cmdline()):
                child.kill()
        _, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    log = boostline.home / "prefect" / "server.log"
    assert err.endswith(
        "The embedded Prefect server ended with code -9 during the run. What was done is kept: the "
        f"same command goes on from there. The last lines of {log}:\n(empty)\n"
    )
    assert boostline.train(*words).resumed_from_round >= 20

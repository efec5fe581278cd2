"""The main job as a user runs it: real processes, a real Prefect server, a real MLflow store."""

import json
import re
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient

from tasks.engine.home import Home
from tasks.ledger import entries
from tests.conftest import Boostline
from tests.worker_processes import worker_processes

pytestmark = pytest.mark.slow


def mlflow_client(home: Path) -> MlflowClient:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def runs_of(client: MlflowClient, name: str = "boostline") -> list[Any]:
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def read_flow_run(server: Any, flow_run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.api_url}/flow_runs/{flow_run_id}").json()
    return found


def wait_for_checkpoint(boostline: Boostline, process: Any, round_: int) -> None:
    deadline = time.monotonic() + 480
    while not list(boostline.home.glob(f"checkpoints/*/round-{round_:06d}.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_defaults_with_nothing_set_up(boostline_alone: Boostline) -> None:
    file = boostline_alone.folder / "summary.json"
    ran = boostline_alone("train", "--summary", str(file))
    assert ran.returncode == 0, ran.stderr
    # one line for each step and nothing else: no warning, no log line of anybody's
    steps = [line.split()[:2] for line in ran.stderr.splitlines()]
    names = ["start", "ingest", "normalize", "train", "evaluate", "record"]
    assert steps == [["✓", name] for name in names], ran.stderr
    assert re.search(r"^test +213 +0\.96\d\d ", ran.stdout, re.MULTILINE), ran.stdout
    summary = json.loads(file.read_bytes())
    assert summary["r2"] == pytest.approx(0.966, abs=0.01)
    assert summary["rows"] == {"train": 661, "valid": 126, "test": 213}
    assert (summary["rounds"], summary["device"], summary["workers"]) == (100, "cpu", 2)
    assert summary["flow_run_id"] in ran.stdout
    assert summary["mlflow_run_id"] in ran.stdout
    with sqlite3.connect(boostline_alone.home / "prefect" / "prefect.db") as database:
        found = database.execute("select name, state_type from flow_run").fetchall()
        steps_run = database.execute("select name from task_run order by start_time").fetchall()
    database.close()
    assert [state for _, state in found] == ["COMPLETED"]
    assert [name for (name,) in steps_run] == [
        "ingest · demo:regression",
        "normalize · 1,000 rows × 5 features",
        "train · 100 × depth 3 · 661 rows",
        "evaluate · 1,000 rows",
        "record · boostline",
    ]


def test_the_mlflow_run_has_everything(boostline: Boostline, shared_data: Path) -> None:
    data = str(shared_data / "housing.csv")
    summary = boostline.train(
        "--data", data, "--target", "median_house_value",
        "--set", "track.model=houses", "--set", "evaluate.by=['ocean_proximity']",
    )  # fmt: skip
    client = mlflow_client(boostline.home)
    run = client.get_run(summary.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["boost.max_depth"] == "3"
    assert run.data.params["data.source"] == data
    assert run.data.metrics["test_r2"] == summary.r2
    assert run.data.metrics["baseline/test_r2"] == pytest.approx(0, abs=0.01)
    assert run.data.metrics["test_r2_low"] < summary.r2 < run.data.metrics["test_r2_high"]
    for name in ("round/train_r2", "round/valid_r2", "round/train_rmse", "round/valid_rmse"):
        history = client.get_metric_history(summary.mlflow_run_id, name)
        assert [metric.step for metric in history] == list(range(1, 101)), name
    last = run.data.metrics["round/valid_r2"]
    assert last == pytest.approx(run.data.metrics["valid_r2"], abs=1e-6)
    assert run.inputs.dataset_inputs[0].dataset.digest == summary.dataset_digest
    assert run.data.tags["prefect.flow_run_id"] == summary.flow_run_id
    assert run.data.tags["model_sha256"] == summary.model_sha256
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"profile.json", "report.json", "importance.json", "plots"} <= names
    plots = {item.path for item in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {
        f"plots/{name}.png"
        for name in ("learning_curve", "predicted_actual", "residuals", "importance")
    }
    version = client.get_model_version("houses", "1")
    assert version.run_id == summary.mlflow_run_id


def test_the_bytes_do_not_depend_on_the_cluster(boostline: Boostline, shared_data: Path) -> None:
    common = [
        "--data", str(shared_data / "diamonds.csv"), "--target", "price",
        "--set", "boost.n_estimators=30", "--set", "boost.max_depth=6",
        "--set", "boost.subsample=0.7", "--set", "boost.colsample_bytree=0.6",
        "--set", "boost.checkpoint_every=10",
    ]  # fmt: skip
    found = []
    for workers, threads in ((1, 2), (3, 1)):
        home = str(boostline.folder / f"home-{workers}")
        summary = boostline.train(
            *common,
            "--set", f"cluster.workers={workers}", "--set", f"cluster.threads={threads}",
            BOOSTLINE_HOME=home,
        )  # fmt: skip
        assert (summary.workers, summary.resumed_from_round) == (workers, 0)
        found.append((summary.model_sha256, summary.r2, summary.rmse))
    assert found[0] == found[1]


@pytest.mark.long
def test_more_rounds_go_on_where_fewer_stopped(boostline: Boostline) -> None:
    alone = boostline.train(BOOSTLINE_HOME=str(boostline.folder / "alone"))
    first = boostline.train("--set", "boost.n_estimators=40")
    second = boostline.train("--set", "boost.n_estimators=100")
    assert (first.rounds, first.resumed_from_round) == (40, 0)
    assert (second.rounds, second.resumed_from_round) == (100, 40)
    assert second.model_sha256 == alone.model_sha256
    client = mlflow_client(boostline.home)
    history = client.get_metric_history(second.mlflow_run_id, "round/train_r2")
    assert [metric.step for metric in history] == list(range(1, 101))


def test_a_killed_run_goes_on_from_its_checkpoint(
    boostline: Boostline, shared_data: Path, prefect_server: Any
) -> None:
    common = [
        "--data", str(shared_data / "diamonds.csv"), "--target", "price",
        "--set", "boost.n_estimators=150", "--set", "boost.max_depth=8",
        "--set", "boost.checkpoint_every=10",
    ]  # fmt: skip
    undisturbed = boostline.train(*common, BOOSTLINE_HOME=str(boostline.folder / "undisturbed"))
    with boostline.start("train", *common) as process:
        wait_for_checkpoint(boostline, process, 20)
        (entry,) = entries(Home(str(boostline.home)))
        killed = entry.flow_run_id
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again = boostline.train(*common)
    assert 20 <= again.resumed_from_round < 150
    assert again.model_sha256 == undisturbed.model_sha256
    # the same MLflow run, with every round once
    client = mlflow_client(boostline.home)
    (run,) = runs_of(client)
    assert (run.info.run_id, run.info.status) == (again.mlflow_run_id, "FINISHED")
    for name in ("round/train_rmse", "round/valid_r2"):
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        assert steps == list(range(1, 151))
    # and the flow run that was killed is known to have crashed
    (entry,) = entries(Home(str(boostline.home)))
    assert (entry.state, entry.flow_run_id) == ("finished", again.flow_run_id)
    assert read_flow_run(prefect_server, again.flow_run_id)["state_type"] == "COMPLETED"
    assert read_flow_run(prefect_server, killed)["state_type"] == "CRASHED"


@pytest.mark.long
def test_what_a_killed_run_did_with_another_table_is_not_recorded_as_this_ones(
    boostline: Boostline, shared_data: Path, prefect_server: Any
) -> None:
    table = pd.read_csv(shared_data / "housing.csv")
    file = boostline.folder / "table.csv"
    common = [
        "--data", str(file), "--target", "median_house_value",
        "--set", "boost.n_estimators=100", "--set", "boost.max_depth=8",
        "--set", "boost.checkpoint_every=10",
    ]  # fmt: skip
    table[:10_000].to_csv(file, index=False)
    with boostline.start("train", *common) as process:
        wait_for_checkpoint(boostline, process, 20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    table.to_csv(file, index=False)
    found = boostline.train(*common)
    fresh = boostline.train(*common, BOOSTLINE_HOME=str(boostline.folder / "fresh"))
    assert (found.model_sha256, found.resumed_from_round) == (fresh.model_sha256, 0)
    client = mlflow_client(boostline.home)
    first, second = sorted(runs_of(client), key=lambda run: run.info.status)
    assert (first.info.status, second.info.status) == ("FAILED", "FINISHED")
    assert second.info.run_id == found.mlflow_run_id
    assert "The table has changed" in first.data.tags["cause"]
    assert first.data.metrics["rows/train"] < second.data.metrics["rows/train"]
    steps = [
        step.step for step in client.get_metric_history(second.info.run_id, "round/train_rmse")
    ]
    assert steps == list(range(1, 101))
    done = [entry.state for entry in entries(Home(str(boostline.home)))]
    assert sorted(done) == ["failed", "finished"]
    assert read_flow_run(prefect_server, found.flow_run_id)["state_type"] == "COMPLETED"


def test_a_wrong_column_is_told_with_those_there_are(
    boostline_alone: Boostline, shared_data: Path
) -> None:
    data = str(shared_data / "housing.csv")
    began = time.monotonic()
    ran = boostline_alone("train", "--data", data, "--target", "median_house_valu")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == (
        "The target column 'median_house_valu' (data.target) is not in the table. Did you mean "
        "'median_house_value'? Its columns are: longitude, latitude, housing_median_age, "
        "total_rooms, total_bedrooms, population, households, median_income, median_house_value, "
        "ocean_proximity.\n"
    )
    assert time.monotonic() - began < 40
    assert not (boostline_alone.home / "mlflow.db").exists()


def test_a_tasks_module_of_the_users_is_not_in_the_way(boostline: Boostline) -> None:
    (boostline.folder / "tasks.py").write_text("raise SystemExit('the wrong tasks')\n")
    (boostline.folder / "mine.py").write_text(
        "import pandas as pd\n\n\ndef load():\n"
        "    return pd.DataFrame({'x': range(500), 'y': [3.0 * i for i in range(500)]})\n"
    )
    summary = boostline.train("--data", "mine:load", "--target", "y")
    assert summary.r2 > 0.99


def test_a_failed_run_is_told_truthfully(boostline: Boostline, prefect_server: Any) -> None:
    (boostline.folder / "mine.py").write_text(
        "def load():\n    raise ValueError('the warehouse is closed')\n"
    )
    ran = boostline("train", "--data", "mine:load", "--target", "y")
    assert ran.returncode == 2
    assert "the warehouse is closed" in ran.stderr
    assert "Traceback" not in ran.stderr
    client = mlflow_client(boostline.home)
    runs = runs_of(client)
    assert [run.info.status for run in runs] == ["FAILED"]
    flow_run = read_flow_run(prefect_server, runs[0].data.tags["prefect.flow_run_id"])
    assert flow_run["state_type"] == "FAILED"
    assert "the warehouse is closed" in flow_run["state"]["message"]


def check_free_again(workers: list[psutil.Process]) -> None:
    """The workers of a run that was just told to end are free within 10 s."""
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=40)
    assert not alive


def test_ctrl_c_leaves_a_killed_run_and_no_process(
    boostline: Boostline, shared_data: Path, prefect_server: Any
) -> None:
    common = [
        "--data", str(shared_data / "diamonds.csv"), "--target", "price",
        "--set", "boost.n_estimators=3000", "--set", "boost.max_depth=8",
    ]  # fmt: skip
    with boostline.start("train", *common) as process:
        wait_for_checkpoint(boostline, process, 20)
        workers = worker_processes(process.pid)
        process.send_signal(signal.SIGINT)
        check_free_again(workers)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        "Interrupted. What was done up to the last checkpoint is kept: the same command goes on "
        "from there."
    )
    client = mlflow_client(boostline.home)
    (run,) = runs_of(client)
    assert run.info.status == "KILLED"
    flow_run = read_flow_run(prefect_server, run.data.tags["prefect.flow_run_id"])
    assert (flow_run["state_type"], flow_run["state"]["message"]) == (
        "CANCELLED",
        "Interrupted by its user.",
    )


def test_cancelling_in_prefect_ends_the_run(
    boostline: Boostline, shared_data: Path, prefect_server: Any
) -> None:
    common = [
        "--data", str(shared_data / "diamonds.csv"), "--target", "price",
        "--set", "boost.n_estimators=3000", "--set", "boost.max_depth=8",
    ]  # fmt: skip
    with boostline.start("train", *common) as process:
        wait_for_checkpoint(boostline, process, 20)
        (entry,) = entries(Home(str(boostline.home)))
        workers = worker_processes(process.pid)
        asked = httpx.post(
            f"{prefect_server.api_url}/flow_runs/{entry.flow_run_id}/set_state",
            json={"state": {"type": "CANCELLING"}, "force": True},
        )
        assert asked.status_code == 201
        check_free_again(workers)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert read_flow_run(prefect_server, entry.flow_run_id)["state_type"] == "CANCELLED"
    (run,) = runs_of(mlflow_client(boostline.home))
    assert run.info.status == "KILLED"


def test_check_says_what_a_run_would_do(boostline: Boostline, shared_data: Path) -> None:
    common = [
        "--data", str(shared_data / "housing.csv"), "--target", "median_house_value",
        "--set", "boost.early_stopping_rounds=2", "--set", "boost.n_estimators=300",
        "--set", "boost.learning_rate=1", "--set", "data.rules=['population > 5']",
        "--set", "data.max_rejected=0.01",
    ]  # fmt: skip
    before = boostline("check", *common)
    assert before.returncode == 0, before.stderr
    assert "Training  300 rounds\n" in before.stdout
    assert f"under {boostline.home / 'rejected'}, with the reason." in before.stdout
    assert not (boostline.home / "checkpoints").exists()
    summary = boostline.train(*common)
    assert 1 < summary.rounds < 300
    after = boostline("check", *common)
    assert re.search(
        r"300 rounds, none of them left: a checkpoint has all \d+ that it", after.stdout
    )


def test_it_stops_early_and_says_so(boostline: Boostline, shared_data: Path) -> None:
    ran = boostline(
        "train", "--data", str(shared_data / "housing.csv"), "--target", "median_house_value",
        "--set", "boost.early_stopping_rounds=3", "--set", "boost.learning_rate=1",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"\d+ rounds, the best of \d+ on the valid rows", ran.stdout), ran.stdout

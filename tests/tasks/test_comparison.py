"""This run beside the last one and the champion, from a real MLflow store."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks import comparison

Log = Callable[..., str]


@pytest.fixture(scope="module")
def client(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = shutil.copytree(mlflow_store, tmp_path_factory.mktemp("mlflow"), dirs_exist_ok=True)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return MlflowClient(uri, uri)


@pytest.fixture
def log(client: MlflowClient, tmp_path: Path) -> Log:
    """Records a run of an experiment of this test's; each starts a second after the one before."""
    experiment = client.create_experiment(tmp_path.name, tmp_path.as_uri())
    times = iter(range(1_000, 100_000, 1_000))

    def record(name: str, model: str = "", digest: str = "a", target: str = "y", **metrics: float):
        start = next(times)
        tags = {"model": model, "target": target, "dataset_digest": digest}
        run = client.create_run(experiment, start_time=start, tags=tags, run_name=name)
        for key, value in metrics.items():
            client.log_metric(run.info.run_id, key, value)
        client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    return record


def register(client: MlflowClient, name: str, run_id: str) -> str:
    client.create_registered_model(name)
    return str(client.create_model_version(name, "file:///nowhere", run_id).version)


def test_the_first_run_has_nothing_beside_it(client: MlflowClient, log: Log) -> None:
    log("of another target", target="z", test_r2=0.9)
    log("of a registered model", model="m", test_r2=0.9)
    found = comparison.compare(client, log("first", test_r2=0.75), None)
    assert (found.last, found.champion) == (None, None)
    assert comparison.headline(found) == (
        "The first run of this model: there is nothing yet to compare it with."
    )
    assert comparison.rows(found) == [
        {
            "metric": "test R²",
            "this run": "0.7500",
            "last run": "–",
            "champion": "–",
            "difference": "–",
        }
    ]


@pytest.mark.parametrize("model", ["", "weekly"])
def test_the_last_run_is_found_behind_those_of_other_models(
    model: str, client: MlflowClient, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "PAGE", 2)
    last = log("last week's", model=model, test_r2=0.5)
    for night in range(5):
        log(f"night {night}", model="nightly", test_r2=0.9)
    found = comparison.compare(client, log("this week's", model=model, test_r2=0.75), None)
    assert found.last is not None and found.last.run_id == last


def test_the_last_finished_run_and_the_champion(client: MlflowClient, log: Log) -> None:
    values = {"test_rmse": 46_000.0, "test_mape": 0.2}
    old = log("old", model="last-and-best", test_r2=0.8, **values)
    log("recent", model="last-and-best", digest="b", test_r2=0.7, test_rmse=51_234.5)
    failed = log("failed", model="last-and-best", test_r2=0.1)
    client.set_terminated(failed, "FAILED")
    values = {"test_rmse": 45_000.0, "test_mape": 0.25}
    this = log("this", model="last-and-best", test_r2=0.8, **values)
    before = comparison.compare(client, this, "last-and-best")
    assert before.champion is None
    assert comparison.headline(before) == (
        "Last run: recent. Difference: this run − last run. The last run had other data, so its "
        "test rows differ."
    )
    version = register(client, "last-and-best", old)
    client.set_registered_model_alias("last-and-best", "champion", version)
    # a run that came after this one is not its last
    log("later", model="last-and-best", test_r2=0.99)
    found = comparison.compare(client, this, "last-and-best")
    assert comparison.headline(found) == (
        "Last run: recent; champion: version 1. Difference: this run − champion."
    )
    table = [tuple(row.values()) for row in comparison.rows(found)]
    assert table == [
        ("test R²", "0.8000", "0.7000", "0.8000", "0"),
        ("test RMSE", "45,000", "51,234", "46,000", "−1,000 (better)"),
        ("test MAPE", "25.00 %", "–", "20.00 %", "+5.000 % (worse)"),
    ]


def test_a_champion_whose_run_was_deleted_is_still_known(client: MlflowClient, log: Log) -> None:
    gone, this = log("gone", model="gone", test_r2=0.8), log("this", model="gone", test_r2=0.9)
    version = register(client, "gone", gone)
    client.set_registered_model_alias("gone", "champion", version)
    client.delete_run(gone)
    found = comparison.compare(client, this, "gone")
    assert found.last is None  # a deleted run is no run
    assert [row["difference"] for row in comparison.rows(found)] == ["+0.1000 (better)"]

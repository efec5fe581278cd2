"""Where a command runs and records: workers, and an MLflow store that fails or refuses."""

import shutil
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.places import client_of, cluster_of, store_of, tracking_of
from infra.mlflow_store import open_experiment, quiet_mlflow
from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.errors import RunError, UserError
from tasks.engine.home import Home

pytestmark = pytest.mark.slow


@pytest.fixture
def home(mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(mlflow_store, tmp_path / "home")
    return Home(str(tmp_path / "home"))


def test_an_experiment_that_was_deleted(home: Home) -> None:
    uri = store_of(home)
    client = MlflowClient(uri, uri)
    number = open_experiment(client, "houses", home.local)
    client.delete_experiment(number)
    with pytest.raises(UserError) as error:
        tracking_of("houses", home)
    assert str(error.value) == (
        f"The experiment 'houses' (track.experiment) was deleted in MLflow at {uri}. Name another, "
        f"or restore it: mlflow experiments restore -x {number}, with MLFLOW_TRACKING_URI={uri}."
    )


def test_an_experiment_that_mlflow_refuses(home: Home) -> None:
    name = "h" * 501
    with pytest.raises(UserError) as error:
        tracking_of(name, home)
    assert str(error.value).startswith(
        f"MLflow at sqlite:///{home.root}/mlflow.db refuses the experiment '{name}' "
        "(track.experiment): "
    )


def test_a_store_that_lacks_a_column(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(f"{home.root}/mlflow.db")) as store:
        store.execute("alter table experiments rename column lifecycle_stage to stage")
    quiet_mlflow()
    with pytest.raises(RunError) as error:
        tracking_of("houses", home)
    assert str(error.value) == (
        f"MLflow's store sqlite:///{home.root}/mlflow.db fails: (sqlite3.OperationalError) no such "
        "column: experiments.lifecycle_stage."
    )
    assert capfd.readouterr().err == ""


def test_a_store_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(RunError, match=r"mlflow\.db cannot be read: file is not a database\."):
        store_of(Home(str(tmp_path)))


def test_a_uri_that_names_no_store() -> None:
    with pytest.raises(UserError) as error:
        client_of("floppy://me:geheim@drive")
    assert str(error.value) == (
        "MLFLOW_TRACKING_URI='floppy://***@drive' is no store that MLflow knows. Write it as in "
        "http://127.0.0.1:5000 or sqlite:////home/me/mlflow.db, or unset it to use the embedded "
        "store."
    )


def test_a_server_that_does_not_answer_is_left_to_who_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    began = time.monotonic()
    assert tracking_of("houses", Home(str(tmp_path))) == "http://127.0.0.1:9"
    assert time.monotonic() - began < 80  # MLflow by itself repeats for minutes


def test_a_loader_has_all_of_xgboost_on_the_workers(home: Home) -> None:
    for source, is_whole in (("table.csv", False), ("mine:load", True)):
        config = ClusterConfig(workers=1, threads=1)
        with cluster_of(config, home, source) as client:
            deadline = time.monotonic() + 120
            while (found := client.submit(_is_whole, pure=False).result(timeout=60)) is None:
                assert time.monotonic() < deadline  # modules are imported beside the first task
                time.sleep(0.1)
            assert found is is_whole


def _is_whole() -> bool | None:
    compat = sys.modules.get("xgboost.compat")
    return getattr(compat, "SKLEARN_INSTALLED", None)

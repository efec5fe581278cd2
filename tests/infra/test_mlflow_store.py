"""The embedded MLflow store, first used by several processes at once; all of them migrate."""

import fcntl
import importlib.metadata
import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import infra.fresh_databases as fresh_databases
from infra.mlflow_store import MlflowStoreError, prepare_mlflow

pytestmark = pytest.mark.slow

FIRST_RUN = """
import sys
from pathlib import Path
import infra.fresh_databases
from infra.mlflow_store import open_experiment, prepare_mlflow, quiet_mlflow
home = Path(sys.argv[1])
infra.fresh_databases.SCHEMAS = home / "none"  # as with another version of MLflow
uri = prepare_mlflow(home)
assert "mlflow" not in sys.modules
quiet_mlflow()
import mlflow
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
with mlflow.start_run(experiment_id=open_experiment(client, "../night run", home)):
    mlflow.log_metric("r2", 0.5)
    mlflow.log_text("hello", "note.txt")
assert client.search_registered_models() == []
"""


ONE_STEP_BACK = """
import sys
from alembic import command
from alembic.config import Config
config = Config()
config.set_main_option("script_location", sys.argv[1])
config.set_main_option("sqlalchemy.url", sys.argv[2])
command.downgrade(config, "-1")
"""


def mlflow_folder() -> str:
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    return os.path.dirname(spec.origin)


@pytest.fixture(autouse=True)
def none_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(fresh_databases, "SCHEMAS", tmp_path / "none")


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[int]]:
    """Four processes that begin on an empty home at once; their folder, outputs, and codes."""
    folder = tmp_path_factory.mktemp("first runs")
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_RUN, str(folder / "home")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
        for _ in range(4)
    ]
    outputs = [run.communicate(timeout=480)[0] for run in runs]
    return folder, outputs, [run.returncode for run in runs]


def test_four_first_runs_at_once_all_succeed_quietly(
    first_runs: tuple[Path, list[str], list[int]],
) -> None:
    folder, outputs, codes = first_runs
    assert (outputs, codes) == ([""] * 4, [0] * 4)
    with closing(sqlite3.connect(folder / "home" / "mlflow.db")) as store:
        assert store.execute("select count(*) from metrics").fetchone() == (4,)
        experiments = store.execute("select name from experiments order by name").fetchall()
    assert experiments == [("../night run",), ("Default",)]
    # Artifacts lie under the home, whatever the experiment is called; nothing in the folder.
    assert len(list((folder / "home" / "artifacts").glob("*/*/artifacts/note.txt"))) == 4
    assert [path.name for path in folder.iterdir()] == ["home"]


def test_an_older_store_is_upgraded_and_kept(
    first_runs: tuple[Path, list[str], list[int]], tmp_path: Path
) -> None:
    database, marker = tmp_path / "mlflow.db", tmp_path / "mlflow.db.version"
    shutil.copy(first_runs[0] / "home" / "mlflow.db", database)
    with closing(sqlite3.connect(database)) as store:
        (head,) = store.execute("select version_num from alembic_version").fetchone()
    # One step back, as an older MLflow would have left it.
    migrations = Path(mlflow_folder()) / "store" / "db_migrations"
    subprocess.run(
        [sys.executable, "-c", ONE_STEP_BACK, str(migrations), f"sqlite:///{database}"],
        check=True,
        capture_output=True,
    )
    marker.write_text("an older one")
    assert prepare_mlflow(tmp_path) == f"sqlite:///{database}"
    version = importlib.metadata.version("mlflow")
    assert marker.read_text() == version
    with closing(sqlite3.connect(database)) as store:
        assert store.execute("select version_num from alembic_version").fetchone() == (head,)
        assert store.execute("select count(*) from metrics").fetchone() == (4,)
    with closing(sqlite3.connect(tmp_path / f"mlflow.db.before-{version}")) as store:
        assert store.execute("select version_num from alembic_version").fetchone() != (head,)


def test_a_file_that_is_no_store_is_left_as_it_was(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(b"this is no database" * 100)
    with pytest.raises(
        MlflowStoreError, match=r"mlflow\.db cannot be read: file is not a database\. Move"
    ):
        prepare_mlflow(tmp_path)
    assert database.read_bytes() == b"this is no database" * 100


def test_a_configured_store_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    assert prepare_mlflow(tmp_path / "home") == "http://mlflow.example"
    assert not (tmp_path / "home").exists()


def test_who_was_killed_while_making_a_store_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child that migrates may outlive it: nobody begins before the child has ended too."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(
        [sys.executable, "-c", FIRST_RUN, str(tmp_path)], env=environment, cwd=tmp_path
    )
    part = tmp_path / "mlflow.db.part"
    until = time.monotonic() + 240
    while not part.exists():
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert _is_locked(tmp_path / "mlflow.db.lock")
    monkeypatch.setenv("BOOSTLINE_START_TIMEOUT", "0.2")
    with pytest.raises(MlflowStoreError) as error:
        prepare_mlflow(tmp_path)
    assert str(error.value) == (
        f"Another process has been making or upgrading MLflow's store in {tmp_path} for 0.2 s "
        "(BOOSTLINE_START_TIMEOUT). Wait for it, end it, or name another store with "
        "MLFLOW_TRACKING_URI."
    )
    monkeypatch.delenv("BOOSTLINE_START_TIMEOUT")
    prepare_mlflow(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("pragma integrity_check").fetchone() == ("ok",)
        assert store.execute("select count(*) from experiments").fetchone() == (1,)
    assert not _is_locked(tmp_path / "mlflow.db.lock")


def _is_locked(file: Path) -> bool:
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_migration_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOSTLINE_START_TIMEOUT", "0.1")
    with pytest.raises(MlflowStoreError) as error:
        prepare_mlflow(tmp_path)
    assert str(error.value) == (
        f"MLflow {importlib.metadata.version('mlflow')} could not make its store "
        f"{tmp_path}/mlflow.db within 0.1 s (BOOSTLINE_START_TIMEOUT)."
    )
    assert not (tmp_path / "mlflow.db").exists()

"""Empty databases of new homes, against what the packages' own migrations come to.

Where a version in constraints.txt has changed, BOOSTLINE_WRITE_SCHEMAS=1 has these tests write
`infra/schemas` anew.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import infra.fresh_databases as fresh_databases
import infra.mlflow_store as mlflow_store
from infra.fresh_databases import make_empty, schema_file
from infra.mlflow_store import MlflowStoreError, artifact_root, open_experiment, prepare_mlflow
from infra.prefect_server import start_embedded_prefect


@pytest.fixture(autouse=True)
def none_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture
def without_schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh_databases, "SCHEMAS", tmp_path / "none")


def contents(database: Path) -> dict[str, object]:
    """What is in a database: by name, the lines of its definition; by table, its rows.

    Alembic writes a table's constraints in another order each time.
    """
    with closing(sqlite3.connect(database)) as connection:
        held = "SELECT type, name, sql FROM sqlite_master WHERE sql NOT NULL"
        definitions = connection.execute(held).fetchall()
        tables = [name for kind, name, _ in definitions if kind == "table"]
        rows = {name: connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables}
    lines = {
        f"{kind} {name}": sorted(line.strip(" \t,") for line in sql.splitlines())
        for kind, name, sql in definitions
    }
    return {**lines, **rows}


def held_against_migrated(package: str, migrated: Path, new: Path) -> None:
    kept = schema_file(package)
    if os.environ.get("BOOSTLINE_WRITE_SCHEMAS"):
        for older in kept.parent.glob(f"{package}-*.sql"):
            older.unlink()
        with closing(sqlite3.connect(migrated)) as connection:
            kept.write_text("\n".join(connection.iterdump()) + "\n", encoding="utf-8")
    assert make_empty(package, new), (
        f"{kept.name} is missing: BOOSTLINE_WRITE_SCHEMAS=1 pytest {__file__} -m slow"
    )
    assert contents(new) == contents(migrated)


@pytest.mark.slow
def test_mlflows_is_what_its_migrations_come_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fresh_databases, "SCHEMAS", tmp_path / "none")
        prepare_mlflow(tmp_path)
    migrated = tmp_path / "mlflow.db"
    # what differs from home to home
    with closing(sqlite3.connect(migrated)) as store, store:
        store.execute(
            "UPDATE experiments SET artifact_location = '', creation_time = 0, last_update_time = 0"
        )
    held_against_migrated("mlflow", migrated, tmp_path / "new.db")


@pytest.mark.slow
def test_prefects_is_what_its_migrations_come_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fresh_databases, "SCHEMAS", tmp_path / "none")
        with start_embedded_prefect(tmp_path, ui=False) as server:
            server.wait()
    held_against_migrated("prefect", tmp_path / "prefect" / "prefect.db", tmp_path / "new.db")


def test_one_that_is_there_stays(tmp_path: Path) -> None:
    mine = tmp_path / "mine.db"
    mine.write_text("mine")
    assert not make_empty("mlflow", mine)
    assert mine.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.db"]


def test_another_version_has_none(tmp_path: Path, without_schemas: None) -> None:
    assert not make_empty("mlflow", tmp_path / "new.db")
    assert not [*tmp_path.iterdir()]


def test_a_broken_schema_is_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh_databases, "SCHEMAS", tmp_path)
    whole = "BEGIN; CREATE TABLE runs (id INTEGER); CREATE TABLE tags"
    schema_file("mlflow").write_text(whole)
    assert not make_empty("mlflow", tmp_path / "new.db")
    assert [path.suffix for path in tmp_path.iterdir()] == [".sql"]


def test_a_new_store_needs_no_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise MlflowStoreError("migrated")

    monkeypatch.setattr(mlflow_store, "_run_migration", forbidden)
    uri = prepare_mlflow(tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    default = client.get_experiment("0")
    assert default.artifact_location == f"{artifact_root(tmp_path)}/0"
    assert default.creation_time and default.creation_time > 1_600_000_000_000
    run = client.create_run(open_experiment(client, "nights", tmp_path))
    client.log_text(run.info.run_id, "hello", "note.txt")
    assert [*(tmp_path / "artifacts").rglob("note.txt")]

"""Empty databases that new homes take from the user's cache."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import infra.mlflow_store as mlflow_store
from infra.fresh_databases import keep, take
from infra.mlflow_store import MlflowStoreError, artifact_root, open_experiment, prepare_mlflow
from infra.prefect_server import start_embedded_prefect


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "boostline"


def made(path: Path, rows: int = 0) -> Path:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE runs (id INTEGER)")
        database.executemany("INSERT INTO runs VALUES (?)", [(row,) for row in range(rows)])
    return path


def is_empty(database: sqlite3.Connection) -> bool:
    return rows_of(database) == 0


def rows_of(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM runs").fetchone()[0])


def test_what_is_kept_is_taken(tmp_path: Path) -> None:
    assert not take("mlflow", tmp_path / "first.db")
    keep("mlflow", made(tmp_path / "first.db"), is_empty)
    assert take("mlflow", tmp_path / "second.db")
    with closing(sqlite3.connect(tmp_path / "second.db")) as second:
        assert rows_of(second) == 0
    assert not take("prefect", tmp_path / "third.db")
    assert [path.name for path in tmp_path.glob("second*")] == ["second.db"]


def test_one_that_holds_anything_is_not_kept(tmp_path: Path) -> None:
    keep("mlflow", made(tmp_path / "used.db", rows=1), is_empty)
    assert not take("mlflow", tmp_path / "new.db")


def test_one_that_is_there_stays(tmp_path: Path) -> None:
    keep("mlflow", made(tmp_path / "first.db"), is_empty)
    made(tmp_path / "mine.db", rows=3)
    assert not take("mlflow", tmp_path / "mine.db")
    with closing(sqlite3.connect(tmp_path / "mine.db")) as mine:
        assert rows_of(mine) == 3


@pytest.mark.parametrize("damage", ["cut short", "no digest"])
def test_a_damaged_one_is_not_taken_and_kept_anew(damage: str, tmp_path: Path, cache: Path) -> None:
    first = made(tmp_path / "first.db")
    keep("mlflow", first, is_empty)
    (kept,), (digest,) = cache.glob("*.db"), cache.glob("*.sha256")
    if damage == "cut short":
        kept.write_bytes(kept.read_bytes()[:-100])
    else:
        digest.unlink()
    assert not take("mlflow", tmp_path / "new.db")
    keep("mlflow", first, is_empty)
    assert take("mlflow", tmp_path / "new.db")


def test_a_cache_that_cant_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    keep("mlflow", made(tmp_path / "first.db"), is_empty)
    assert not take("mlflow", tmp_path / "new.db")


@pytest.mark.slow
def test_a_second_home_needs_no_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_mlflow(tmp_path / "first")

    def forbidden(*_: object) -> None:
        raise MlflowStoreError("migrated again")

    monkeypatch.setattr(mlflow_store, "_run_migration", forbidden)
    uri = prepare_mlflow(tmp_path / "second")
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    default = client.get_experiment("0")
    assert default.artifact_location == f"{artifact_root(tmp_path / 'second')}/0"
    run = client.create_run(open_experiment(client, "nights", tmp_path / "second"))
    client.log_text(run.info.run_id, "hello", "note.txt")
    assert [*(tmp_path / "second" / "artifacts").rglob("note.txt")]
    assert not (tmp_path / "first" / "artifacts").exists()


@pytest.mark.slow
def test_prefects_server_starts_on_a_copy(tmp_path: Path, cache: Path) -> None:
    with start_embedded_prefect(tmp_path / "first", ui=False) as server:
        server.wait()
    assert [path.name.partition("-")[0] for path in cache.glob("*.sha256")] == ["prefect"]
    with start_embedded_prefect(tmp_path / "second", ui=False) as server:
        assert (tmp_path / "second" / "prefect" / "prefect.db").stat().st_size > 100_000
        server.wait()

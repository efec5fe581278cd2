"""The MLflow store that a command keeps for itself when no tracking server is configured.

MLflow's own first migration of an SQLite file is neither atomic nor safe for several processes at
once. Here one process makes the file under a temporary name, under a lock, and puts it in place
when it is whole.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from infra.fresh_databases import make_empty
from infra.start_limit import VARIABLE, start_limit_s

if TYPE_CHECKING:
    from mlflow import MlflowClient

POLL_S = 0.1
WAY_OUT = "Move the file away, or name another store with MLFLOW_TRACKING_URI."

# Runs in a process of its own: Alembic configures logging as it likes, and a migration that is
# killed leaves only a temporary file. Arguments: URI of the file, artifact root.
_MIGRATE = """
import sys
from mlflow.store.db import utils
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

uri, artifact_root = sys.argv[1:]
engine = utils.create_sqlalchemy_engine_with_retry(uri)
if utils._is_empty_database(engine):
    utils._initialize_tables(engine)
else:
    utils._upgrade_db(engine)
SqlAlchemyStore(uri, artifact_root)
engine.dispose()
"""


class MlflowStoreError(RuntimeError):
    """The embedded MLflow store could not be made or brought up to date."""


def prepare_mlflow(home: Path) -> str:
    """Return the tracking URI, which is also the registry's, and make sure its store is ready.

    `MLFLOW_TRACKING_URI` where set; else the SQLite file `home/mlflow.db`, made or upgraded to the
    installed MLflow's schema when needed (the file as it was is kept beside it). Safe for any
    number of processes at once. Does not import MLflow; quick once the store is ready.

    A user and password in the URI of a server go to the variables that MLflow has for them, in
    this process: MLflow keeps and shows URIs as they are.

    Raises:
        MlflowStoreError: the migration failed, or it or another process's took longer than
            BOOSTLINE_START_TIMEOUT.
    """
    if configured := os.environ.get("MLFLOW_TRACKING_URI"):
        return _without_credentials(configured)
    return prepare_store(home)


def prepare_store(home: Path) -> str:
    """As `prepare_mlflow`, for the store of `home` alone, whatever the environment names."""
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    database = home / "mlflow.db"
    marker = home / "mlflow.db.version"
    version = importlib.metadata.version("mlflow")
    if not _is_ready(database, marker, version):
        with _exclusive(home / "mlflow.db.lock", start_limit_s()) as lock:
            if not _is_ready(database, marker, version):
                _migrate(database, artifact_root(home), version, lock)
                _write(marker, version)
    return f"sqlite:///{database}"


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(name)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    os.environ["MLFLOW_TRACKING_URI"] = urlunsplit(parts._replace(netloc=host))
    return os.environ["MLFLOW_TRACKING_URI"]


def artifact_root(home: Path) -> Path:
    """Return the folder of the embedded store's artifacts."""
    return home.absolute() / "artifacts"


def quiet_mlflow() -> None:
    """Keep the notes of MLflow and Alembic off the terminal; their errors still show."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # it prints a traceback of each error of the database, and raises it too
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def open_experiment(client: MlflowClient, name: str, home: Path) -> str:
    """Return the id of the experiment `name`, made if there is none.

    An SQLite store that is used without a server would put artifacts under `mlruns` in the
    current folder. So the experiment itself names `home/artifacts/NAME` as their place; a tracking
    server decides for itself. Several processes may ask for one name at once.

    Raises:
        mlflow.exceptions.MlflowException: the name is refused or the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    location = None
    if client.tracking_uri == f"sqlite:///{home.absolute() / 'mlflow.db'}":
        location = (artifact_root(home) / _folder_name(name)).as_uri()
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        # Another process made it between the two calls; anything else is raised again.
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise


def _folder_name(name: str) -> str:
    """Return `name` as one path segment that can leave no folder."""
    cleaned = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return cleaned.lstrip(".") or "experiment"


def _is_ready(database: Path, marker: Path, version: str) -> bool:
    try:
        return database.stat().st_size > 0 and marker.read_text() == version
    except FileNotFoundError:
        return False


def _migrate(database: Path, artifacts: Path, version: str, lock: IO[str]) -> None:
    """Make `database` whole or not at all; upgrade an existing one in place, after a copy.

    In place, since a server that has the file open must not go on with one that is gone.
    """
    if database.exists() and database.stat().st_size > 0:
        copy = database.with_name(f"{database.name}.before-{version}")
        _copy(database, copy)
        failed = f"could not upgrade its store {database} (as it was: {copy})"
        _run_migration(database, artifacts, f"MLflow {version} {failed}", lock)
    else:
        part = database.with_name(f"{database.name}.part")
        part.unlink(missing_ok=True)
        if make_empty("mlflow", part):
            _settle(part, artifacts)
        else:
            failed = f"could not make its store {database}"
            _run_migration(part, artifacts, f"MLflow {version} {failed}", lock)
        part.replace(database)


def _settle(database: Path, artifacts: Path) -> None:
    """Make an empty store this home's: its one experiment has a place and a time."""
    now = int(time.time() * 1000)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ?, creation_time = ?, last_update_time = ?",
            (f"{artifacts}/0", now, now),
        )


def _copy(database: Path, copy: Path) -> None:
    """Copy through SQLite, which takes along what still lies in the journal."""
    try:
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.DatabaseError as error:
        copy.unlink(missing_ok=True)
        raise MlflowStoreError(
            f"MLflow's store {database} cannot be read: {error}. {WAY_OUT}"
        ) from error


def _run_migration(database: Path, artifacts: Path, failed: str, lock: IO[str]) -> None:
    """The child holds the lock too: it may outlive us, and nobody may begin before it has ended."""
    limit_s = start_limit_s()
    # Name by name: MLflow, imported in another thread meanwhile, takes a variable of its own away.
    environment = {
        name: value
        for name in list(os.environ)
        if not name.startswith("MLFLOW_") and (value := os.environ.get(name)) is not None
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _MIGRATE, f"sqlite:///{database}", str(artifacts)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            check=False,
            pass_fds=[lock.fileno()],
        )
    except subprocess.TimeoutExpired as error:
        raise MlflowStoreError(f"{failed} within {limit_s:g} s ({VARIABLE}).") from error
    if done.returncode != 0:
        tail = "\n".join(done.stdout.decode(errors="replace").splitlines()[-10:])
        raise MlflowStoreError(f"{failed}. {WAY_OUT} MLflow's last lines:\n{tail}")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


@contextmanager
def _exclusive(lock_file: Path, limit_s: float) -> Iterator[IO[str]]:
    until = time.monotonic() + limit_s
    with lock_file.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise MlflowStoreError(
                        f"Another process has been making or upgrading MLflow's store in "
                        f"{lock_file.parent} for {limit_s:g} s ({VARIABLE}). Wait for it, end it, "
                        "or name another store with MLFLOW_TRACKING_URI."
                    ) from error
            time.sleep(POLL_S)
        yield lock

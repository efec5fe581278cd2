"""Which runs are under way, which died, and what of them still has to be recorded.

Every run has a folder `runs/<name>` in the home: an entry, a lock that its process holds as long as
it lives, the spool of its recording, and once it is trained all that the recording needs. A run
that is started again after its process died goes on in the same folder and so in the same MLflow
run.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import IO, Literal, TypeVar

from pydantic import BaseModel

from tasks.engine.dataset import Frozen
from tasks.engine.home import Home

State = Literal["running", "crashed", "finished", "failed", "killed"]

_Model = TypeVar("_Model", bound=BaseModel)

ENTRY = "entry.json"
LOCK = "alive.lock"
FINDINGS = "findings.json"


class Entry(Frozen):
    """A run as its folder has it. `key` says which runs would do the same work.

    `dataset` is the digest of its table, "" before that is known. `recorded` is False while
    something is spooled that MLflow has not taken. `pid` is that of the flow's process, `started`
    UTC in ISO 8601.
    """

    name: str
    key: str
    flow_run_id: str
    dataset: str = ""
    pid: int = 0
    tracking_uri: str = ""
    mlflow_run_id: str | None = None
    state: State = "running"
    recorded: bool = False
    cause: str = ""
    started: str = ""


class OtherTableError(Exception):
    """The table has changed since the run began that this one was to go on in."""


class RunFolder:
    """The folder of one run; who holds it is the only one to write it."""

    def __init__(self, path: Path, entry: Entry, lock: IO[bytes]) -> None:
        self.path = path
        self.entry = entry
        self._lock = lock

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def is_trained(self) -> bool:
        """Whether all that its recording needs is kept."""
        return (self.path / FINDINGS).exists()

    def update(self, **values: object) -> None:
        """Changes fields of the entry, on disk too."""
        self.entry = self.entry.model_copy(update=values)
        Home(str(self.path)).save(self.entry, ENTRY)

    def settle(self, dataset: str) -> None:
        """Notes the digest of the run's table.

        Raises:
            OtherTableError: it was another, so nobody goes on in this folder any more.
        """
        if self.entry.dataset not in ("", dataset):
            self.update(key="")
            waits = ", and `boostline record` records what it trained on the old one"
            raise OtherTableError(
                "The table has changed since this run's process died: another begins anew, in a "
                f"record of its own{waits if self.is_trained else ''}."
            )
        self.update(dataset=dataset)

    def give_back(self, cause: str, *, killed: bool = False) -> None:
        """Leaves the folder as it was before this try, which has not even begun to record."""
        if self.entry.mlflow_run_id or self.is_trained:
            self.update(state="crashed", cause=cause)
        else:
            rmtree(self.spool, ignore_errors=True)
            self.update(state="killed" if killed else "failed", cause=cause, recorded=True)

    def keep(self, name: str, value: BaseModel) -> None:
        Home(str(self.path)).save(value, name)

    def kept(self, name: str, model: type[_Model]) -> _Model | None:
        return Home(str(self.path)).load(model, name)

    def release(self) -> None:
        self._lock.close()


def entries(home: Home) -> list[Entry]:
    """All runs of the home that can be read, the newest first."""
    folder = home.local / "runs"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [(name, Home(str(folder / name)).load(Entry, ENTRY)) for name in names]
    # a name leads to a folder: it is the one that it was found in
    known = [entry for name, entry in found if entry and entry.name == name]
    return sorted(known, key=lambda entry: entry.started)[::-1]


def read_entry(home: Home, entry: Entry, name: str, model: type[_Model]) -> _Model | None:
    """What a run's folder keeps under `name`, whoever holds it; None where it has nothing whole."""
    return Home(str(home.local / "runs" / entry.name)).load(model, name)


def is_alive(home: Home, entry: Entry) -> bool:
    """Whether the process of a run still lives, here or on a host that shares the home."""
    folder = held(home, entry)
    if folder is None:
        return True
    folder.release()
    return False


def held(home: Home, entry: Entry) -> RunFolder | None:
    """The run's folder, taken over from a process that is gone; None where it still lives."""
    path = home.local / "runs" / entry.name
    lock = (path / LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    # as it is now that nobody else can change it
    current = Home(str(path)).load(Entry, ENTRY)
    return RunFolder(path, current or entry, lock)


def dead(home: Home) -> Iterator[RunFolder]:
    """Runs that were under way when their process died, one after the other, each held."""
    for entry in entries(home):
        if entry.state != "running":
            continue
        folder = held(home, entry)
        if folder is None:
            continue
        try:
            if folder.entry.state == "running":
                yield folder
        finally:
            folder.release()


@contextmanager
def under_way(home: Home, flow_run_id: str, key: str) -> Iterator[RunFolder]:
    """The folder of this run while it lasts.

    It is that of an earlier try: of the same flow run, or of a run with the same `key` whose
    process died. A run that ends by an exception leaves its own word in the entry before.
    """
    folder = _earlier(home, flow_run_id, key) or _new(home, flow_run_id, key)
    folder.update(
        flow_run_id=flow_run_id,
        state="running",
        cause="",
        recorded=False,
        pid=os.getpid(),
    )
    try:
        yield folder
    finally:
        folder.release()


def _earlier(home: Home, flow_run_id: str, key: str) -> RunFolder | None:
    for entry in entries(home):
        died = entry.state in ("running", "crashed")
        if entry.key != key or not (died or entry.flow_run_id == flow_run_id):
            continue
        folder = held(home, entry)
        if folder is None:
            continue
        if folder.entry.state in ("running", "crashed") or folder.entry.flow_run_id == flow_run_id:
            return folder
        folder.release()
    return None


def _new(home: Home, flow_run_id: str, key: str) -> RunFolder:
    names = (f"{flow_run_id}-{number}" if number else flow_run_id for number in count())
    path = next(path for name in names if not (path := home.local / "runs" / name).exists())
    path.mkdir(parents=True)
    lock = (path / LOCK).open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return RunFolder(
        path, Entry(name=path.name, key=key, flow_run_id=flow_run_id, started=started), lock
    )

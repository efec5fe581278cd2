"""Which services `boostline up` runs for a home: a file that says so, and a lock that proves it.

The process of `up` holds the lock as long as it lives, so that what the file says counts only then.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FILE = "services.json"
LOCK = "services.lock"
# A reader holds the lock for a moment.
CLAIM_S = 1.0


@dataclass(frozen=True)
class Services:
    """What runs, once `ready`. Nothing in here is secret.

    `prefix` is the Python environment of the process `pid` on `host`, `started` UTC in ISO 8601.
    `mlflow` is the server's address, `store` the tracking URI for runs of this home: the SQLite
    file itself, which goes on when the server ends, or the server where the store is elsewhere.
    `dask` is the scheduler's address, `pool` the work pool that a worker runs for.
    """

    pid: int
    host: str
    prefix: str
    started: str
    ready: bool = False
    prefect: str = ""
    mlflow: str = ""
    store: str = ""
    dask: str = ""
    dashboard: str = ""
    pool: str = ""
    database: str = ""

    @property
    def here(self) -> bool:
        """Whether it is this host on whose loopback they listen."""
        return self.host == socket.gethostname()

    @property
    def pages(self) -> str:
        """Prefect's pages."""
        return self.prefect.removesuffix("/api")


class ServicesUpError(RuntimeError):
    """Another `boostline up` runs for this home; None where it has not said what."""

    def __init__(self, services: Services | None) -> None:
        super().__init__("services are up already")
        self.services = services


class Claim:
    """The right to run the services of a home; what is `told` counts as long as it is held."""

    def __init__(self, home: Path, started: str) -> None:
        self._file = home / FILE
        self.services = Services(os.getpid(), socket.gethostname(), sys.prefix, started)
        self.tell()

    def tell(self, **values: object) -> Services:
        """Changes fields of what the file says."""
        self.services = dataclasses.replace(self.services, **values)  # type: ignore[arg-type]
        part = self._file.with_name(f"{FILE}.part")
        part.write_text(json.dumps(dataclasses.asdict(self.services), indent=1))
        part.replace(self._file)
        return self.services


@contextmanager
def claimed(home: Path, started: str) -> Iterator[Claim]:
    """The claim on the services of `home` while the block runs.

    Raises:
        ServicesUpError: another process has it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("ab") as lock:
        deadline = time.monotonic() + CLAIM_S
        while not _taken(lock.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise ServicesUpError(_read(home))
            time.sleep(CLAIM_S / 10)
        try:
            yield Claim(home, started)
        finally:
            (home / FILE).unlink(missing_ok=True)


def running(home: Path) -> Services | None:
    """What `boostline up` runs for `home` on this host, ready or not; None where it does not."""
    try:
        lock = (home / LOCK).open("rb")
    except OSError:
        return None
    with lock:
        if _taken(lock.fileno(), fcntl.LOCK_SH):
            return None
        services = _read(home)
    return services if services and services.here else None


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(home: Path) -> Services | None:
    try:
        return Services(**json.loads((home / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None

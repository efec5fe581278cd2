"""Removes what runs left under BOOSTLINE_HOME and nothing needs any more.

Only the folders named here are looked at. MLflow's database and artifacts, where every registered
model lives whole, are not among them.
"""

import fcntl
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import fsspec

from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.figures import amount, size
from tasks.ledger import entries

REMOVABLE = {
    "checkpoints": "checkpoints",
    "converted": "converted tables",
    "rejected": "rejected rows",
    "profiles": "profiles",
    "footers": "footers of tables",
    "predictions": "parts of predictions",
    "scored": "parts of scored tables",
    "models": "copies of models",
    "dask": "workers' scratch",
    "runs": "spools of runs",
    "logs": "tracebacks",
}
NEEDED_TO_RECORD = {"models", "converted", "profiles"}
IN_USE = timedelta(hours=1)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Removed:
    """Entries of one folder of the home: how many there were, and their bytes."""

    what: str
    entries: int
    bytes: int


def age(text: str) -> timedelta:
    """`30d`, `12h`, `2w` or `90m` as a time span. Raises UserError for anything else."""
    found = re.fullmatch(r"\s*(\d{1,5})\s*([mhdw])\s*", text)
    if not found:
        raise UserError(
            f"--older-than {text!r} is not an age. Write a whole number and m, h, d or w "
            "(minutes, hours, days, weeks), as in 30d."
        )
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def remove_old(home: Home, older_than: timedelta, dry_run: bool = False) -> list[Removed]:
    """Removes the entries that nobody has used for `older_than`, an hour at the least.

    An entry is a run's, a table's or a training's own folder: it goes whole or stays whole. One
    that holds a lock which a process has taken stays. A run that waits for `boostline record`
    stays, and with it the models and tables that it may need. Returns a line for each kind that
    had any.
    """
    waiting = waiting_runs(home)
    before = datetime.now(UTC) - max(older_than, IN_USE)
    # Of a home on object storage this host keeps a part in a folder of its own.
    places = [fsspec.core.url_to_fs(root) for root in dict.fromkeys([home.root, str(home.local)])]
    removed = []
    for (filesystem, root), (folder, what) in product(places, REMOVABLE.items()):
        if waiting and folder in NEEDED_TO_RECORD:
            continue
        found = [
            (entry["name"], files)
            for entry in _listed(filesystem, f"{root.rstrip('/')}/{folder}")
            if _last_used(filesystem, files := _files(filesystem, entry), entry) < before
            and not any(_taken(filesystem, name) for name in files)
            and not (folder == "runs" and Path(entry["name"]).name in waiting)
        ]
        total = sum(int(info.get("size") or 0) for _, files in found for info in files.values())
        for name, _ in found if not dry_run else []:
            with suppress(FileNotFoundError):
                filesystem.rm(name, recursive=True)
        if found:
            removed.append(Removed(what, len(found), total))
    return removed


def waiting_runs(home: Home) -> set[str]:
    """Names of runs that MLflow has not taken whole."""
    return {entry.name for entry in entries(home) if not entry.recorded}


def sentences(removed: list[Removed], home: Home, older_than: str, dry_run: bool) -> list[str]:
    """What `remove_old` did, for the terminal."""
    waiting = len(waiting_runs(home))
    kept = [f"{amount(waiting, 'runs')} kept for `boostline record`, with all that it needs."]
    kept = kept if waiting else []
    if not removed:
        shown = older_than if age(older_than) > IN_USE else "an hour"
        return [f"Nothing in {home.root} has been unused for {shown}.", *kept]
    lines = [f"{part.what:<22} {part.entries:>6,} {size(part.bytes):>12}" for part in removed]
    total = size(sum(part.bytes for part in removed))
    verb = "Would remove" if dry_run else "Removed"
    return [*lines, f"{verb} {total} in {home.root}.", *kept]


def _listed(filesystem: Any, folder: str) -> list[dict[str, Any]]:
    """The folder's entries; links are the user's own doing and stay."""
    try:
        entries = filesystem.ls(folder, detail=True)
        return [entry for entry in entries if not entry.get("islink")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(filesystem: Any, entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if entry["type"] != "directory":
        return {entry["name"]: dict(entry)}
    found: dict[str, dict[str, Any]] = filesystem.find(entry["name"], detail=True)
    return found


def _last_used(filesystem: Any, files: Mapping[str, Any], entry: Mapping[str, Any]) -> datetime:
    """Of the entry's newest file; on a local disk reading counts as use, a day late at most."""
    times = [_time(filesystem, name, info) for name, info in files.items()]
    return max(times) if times else _time(filesystem, entry["name"], entry)


def _time(filesystem: Any, name: str, info: Mapping[str, Any]) -> datetime:
    if "mtime" in info:
        used = float(info["mtime"])
        with suppress(OSError):
            used = max(used, Path(name).lstat().st_atime) if info["type"] == "file" else used
        return datetime.fromtimestamp(used, UTC)
    for key in ("LastModified", "last_modified", "updated", "created"):
        if isinstance(info.get(key), datetime):
            known: datetime = info[key]
            return known if known.tzinfo else known.replace(tzinfo=UTC)
    modified: datetime = filesystem.modified(name)
    return modified if modified.tzinfo else modified.replace(tzinfo=UTC)


def _taken(filesystem: Any, name: str) -> bool:
    """Whether a process holds the lock file `name`; where locks can't be tried, all are held."""
    if not name.endswith(".lock"):
        return False
    if not Path(name).is_file():
        return True
    try:
        with open(name, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False

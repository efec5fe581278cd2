"""Empty databases of Prefect and MLflow, made once for each version and copied into new homes.

Their migrations take longer than all else that a first run in a new folder starts. A copy is kept
in the user's cache (`$XDG_CACHE_HOME/boostline`, or `~/.cache/boostline`), beside its digest: one
that was damaged is not taken. Whatever goes wrong there, the database is made as without it.
"""

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

Check = Callable[[sqlite3.Connection], bool]


def take(package: str, database: Path) -> bool:
    """Put an empty database of the installed `package` where there is none; whether it did."""
    kept = _place(package)
    try:
        if not _is_whole(kept):
            return False
        with _beside(database) as part:
            shutil.copyfile(kept, part)
            # one that somebody else has made meanwhile stays: renaming would replace it
            os.link(part, database)
    except OSError:
        return False
    return True


def keep(package: str, database: Path, is_empty: Check) -> None:
    """Keep a copy of `database`, which may be in use, unless one is kept or it holds anything."""
    kept = _place(package)
    with suppress(OSError, sqlite3.Error):
        if _is_whole(kept):
            return
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _beside(kept) as part:
            with (
                closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as source,
                closing(sqlite3.connect(part)) as copy,
            ):
                source.backup(copy)
                # else it would need a second file beside it
                copy.execute("PRAGMA journal_mode=DELETE")
                if not is_empty(copy):
                    return
            digest = hashlib.sha256(part.read_bytes()).hexdigest()
            part.replace(kept)
        with _beside(_digest_of(kept)) as part:
            part.write_text(digest)
            part.replace(_digest_of(kept))


def _is_whole(kept: Path) -> bool:
    try:
        digest = _digest_of(kept).read_text()
        return hashlib.sha256(kept.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def _place(package: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache, "boostline", f"{package}-{version(package)}.db")


def _digest_of(kept: Path) -> Path:
    return kept.with_suffix(".sha256")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name for what is to become `path`; what is left under it is removed."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)

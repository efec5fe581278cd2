"""Empty databases of Prefect and MLflow for new homes, from the schemas in `infra/schemas`.

Their migrations take longer than all else that a first run starts. The folder has what they come
to for the versions of `constraints.txt`, as SQL; another version of a package migrates as ever.
`tests/infra/test_fresh_databases.py` holds each against a migration, and writes it anew.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

SCHEMAS = Path(__file__).with_name("schemas")


def schema_file(package: str) -> Path:
    """Of the installed version of `package`; there may be none."""
    return SCHEMAS / f"{package}-{version(package)}.sql"


def make_empty(package: str, database: Path) -> bool:
    """Put an empty database of the installed `package` where there is none; whether it did."""
    try:
        schema = schema_file(package).read_text(encoding="utf-8")
        with _beside(database) as part:
            with closing(sqlite3.connect(part)) as connection:
                connection.executescript(schema)
            # one that somebody else has made meanwhile stays: renaming would replace it
            os.link(part, database)
    except (OSError, sqlite3.Error):
        return False
    return True


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name for what is to become `path`; what is left under it is removed."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)

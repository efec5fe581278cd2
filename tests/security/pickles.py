"""Finding pickle streams: whole files, and texts in base64 within databases and JSON."""

import base64
import io
import pickletools
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.security.search import files_of

_BASE64 = re.compile(rb"[A-Za-z0-9+/\-_]{16,}={0,2}")


def is_pickle(content: bytes) -> bool:
    """Whether Python's unpickler would take the whole of it: protocols 0 to 5, packed or not."""
    for candidate in (content, *_unpacked(content)):
        opened = candidate.removesuffix(b"\n")
        if len(opened) < 4 or (opened[0] != 0x80 and not opened.endswith(b".")):
            continue
        try:
            operations = list(pickletools.genops(io.BytesIO(opened)))
        except Exception:  # noqa: BLE001  whatever is no pickle fails in a way of its own
            continue
        last, _, place = operations[-1]
        if len(operations) > 2 and last.name == "STOP" and place == len(opened) - 1:
            return True
    return False


def pickles_in(places: Iterable[Path]) -> Iterator[str]:
    """Files that are pickles or hold one in base64; rows of SQLite files, too."""
    for path in files_of(places):
        content = path.read_bytes()
        if is_pickle(content):
            yield str(path)
        if content.startswith(b"SQLite format 3"):
            for where, value in _values(path):
                if is_pickle(value) or any(map(is_pickle, _decoded(value))):
                    yield f"{path}: {where}"
        elif any(map(is_pickle, _decoded(content))):
            yield f"{path} (base64)"


def _unpacked(content: bytes) -> Iterator[bytes]:
    for window in (15, 31):
        try:
            yield zlib.decompress(content, window)
        except zlib.error:
            continue


def _decoded(content: bytes) -> Iterator[bytes]:
    for found in _BASE64.findall(content):
        with_end = found + b"=" * (-len(found) % 4)
        try:
            yield base64.b64decode(with_end.translate(bytes.maketrans(b"-_", b"+/")))
        except ValueError:
            continue


def _values(path: Path) -> Iterator[tuple[str, bytes]]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        tables = connection.execute("select name from sqlite_master where type = 'table'")
        for (table,) in tables.fetchall():
            rows = connection.execute(f'select * from "{table}"')
            names = [column[0] for column in rows.description]
            for row in rows:
                for name, value in zip(names, row, strict=True):
                    if isinstance(value, str | bytes):
                        text = value.encode() if isinstance(value, str) else value
                        yield f"{table}.{name}", text
    finally:
        connection.close()

"""What is known of files by their size and time of change, so that nothing is read for it.

Content digests, and what the footers of Parquet files say.
"""

import os
from collections.abc import Callable, Iterable, Mapping

from tasks.engine.dataset import Column, Dataset, Frozen
from tasks.engine.home import Home, digest_of
from tasks.engine.inputs import SourceFile

FORMAT = 1


class _Remembered(Frozen):
    files: dict[str, tuple[int, str, str]]


class Footer(Frozen):
    """`opened` is the size in memory in bytes, about; `wide` are integers beyond 2^53."""

    columns: tuple[Column, ...]
    row_groups: tuple[int, ...]
    opened: int
    wide: tuple[str, ...]


class _Footers(Frozen):
    """Footers by URI: size, modified, the number of their columns in `schemas`, and the rest."""

    schemas: tuple[tuple[Column, ...], ...]
    files: dict[str, tuple[int, str, int, tuple[int, ...], int, tuple[str, ...]]]


def remembered(home: Home, source: str) -> Callable[[str, int, str], str | None]:
    """Looks up (uri, size, modified): the digest that was found when `source` was read before."""
    known = home.load(_Remembered, "digests", f"{digest_of(source)}.json")
    files = known.files if known else {}

    def look_up(uri: str, size: int, modified: str) -> str | None:
        stored = files.get(uri)
        return stored[2] if stored and modified and stored[:2] == (size, modified) else None

    return look_up


def remember(home: Home, dataset: Dataset) -> None:
    """Keeps the digests of a dataset whose content has been read."""
    files = {
        file.uri: (file.size, file.modified, file.digest) for file in dataset.files if file.digest
    }
    home.save(_Remembered(files=files), "digests", f"{digest_of(dataset.source)}.json")


def remembered_footers(home: Home, source: str, files: Iterable[SourceFile]) -> dict[str, Footer]:
    """The footers by URI of those files that are as they were when `source` was inspected."""
    known = home.load(_Footers, "footers", _place(source))
    if known is None:
        return {}
    found = {}
    for file in files:
        stored = known.files.get(file.uri)
        if not stored or not file.modified or stored[:2] != (file.size, file.modified):
            continue
        # one that can no longer be opened is told of as if it were new
        if "://" not in file.uri and not os.access(file.uri, os.R_OK):
            continue
        _, _, schema, row_groups, opened, wide = stored
        found[file.uri] = Footer(
            columns=known.schemas[schema], row_groups=row_groups, opened=opened, wide=wide
        )
    return found


def remember_footers(
    home: Home, source: str, files: Iterable[SourceFile], footers: Mapping[str, Footer]
) -> None:
    """Keeps the footers of all files of a source, by URI; most of them share a schema."""
    schemas: dict[tuple[Column, ...], int] = {}
    numbers: dict[int, int] = {}
    kept = {}
    for file in files:
        footer = footers[file.uri]
        # files remembered from before hold one and the same tuple
        number = numbers.get(id(footer.columns))
        if number is None:
            number = schemas.setdefault(footer.columns, len(schemas))
            numbers[id(footer.columns)] = number
        about = (footer.row_groups, footer.opened, footer.wide)
        kept[file.uri] = (file.size, file.modified, number, *about)
    home.save(_Footers(schemas=tuple(schemas), files=kept), "footers", _place(source))


def _place(source: str) -> str:
    return f"{digest_of(FORMAT, source)}.json"

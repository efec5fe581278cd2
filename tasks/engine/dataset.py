"""A table as a list of Parquet row groups: what travels between the steps in place of rows."""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal[
    "integer", "float", "boolean", "decimal", "date", "timestamp", "duration", "string", "other"
]


class Frozen(BaseModel):
    """Base of every value that steps hand to each other: immutable, JSON in and out."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Column(Frozen):
    """A column of the table: `arrow` is its Arrow type as text; `other` kinds can't be features."""

    name: str
    kind: Kind
    arrow: str


class RowGroup(Frozen):
    """A unit of work: row group `index` of `uri`, holding rows `start` to `start + rows`.

    `path` is relative to the source's root (of a converted source: the original's path), and
    names the row together with its number. `stamp` is the file's size and time of modification
    when it was listed: a file that has changed since is refused. Empty where it can't change.
    `layout` is that of its file.
    """

    uri: str
    path: str
    index: int
    rows: int
    start: int
    stamp: str = ""
    layout: str = ""


Batch = tuple[RowGroup, ...]


def by_file(batch: Sequence[RowGroup]) -> list[Batch]:
    """The row groups of each file, neighbours together."""
    return [tuple(groups) for _, groups in groupby(batch, lambda group: (group.uri, group.path))]


def rows_in(batch: Sequence[RowGroup]) -> int:
    return sum(group.rows for group in batch)


def place_in(batch: Sequence[RowGroup], row: int) -> tuple[str, int]:
    """Path and number in its file, from 1, of a batch's row `row`, from 0."""
    for group in batch:
        if row < group.rows:
            return group.path, group.start + row + 1
        row -= group.rows
    raise IndexError(row)


class File(Frozen):
    """A Parquet file: `row_groups` holds the rows of each; `modified` is a time or an ETag.

    Files of our own making never change and have no such time.

    `digest` is the BLAKE2b of its content, None until a pass has read it. Files of one `layout`
    hold their columns in the same types: small ones of them are read together.
    """

    uri: str
    path: str
    size: int
    modified: str
    row_groups: tuple[int, ...]
    digest: str | None = None
    layout: str = ""

    @property
    def rows(self) -> int:
        return sum(self.row_groups)

    def groups(self) -> list[RowGroup]:
        """The file's non-empty row groups, in order."""
        found, start = [], 0
        stamp = f"{self.size}:{self.modified}" if self.modified else ""
        for index, rows in enumerate(self.row_groups):
            if rows:
                found.append(
                    RowGroup(
                        uri=self.uri,
                        path=self.path,
                        index=index,
                        rows=rows,
                        start=start,
                        stamp=stamp,
                        layout=self.layout,
                    )
                )
            start += rows
        return found


class Dataset(Frozen):
    """Files in the order of their paths, with one schema.

    `source` is as the user wrote it, without passwords. `notes` are warnings about the source
    (an extra column in one file, say), each a sentence.
    """

    source: str
    columns: tuple[Column, ...]
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def column(self, name: str) -> Column:
        """Raises KeyError where the table has no such column."""
        return {column.name: column for column in self.columns}[name]

    def row_groups(self) -> list[RowGroup]:
        return [group for file in self.files for group in file.groups()]

    @property
    def digest(self) -> str | None:
        """Of paths and contents; None while a file's content has not been read."""
        if any(file.digest is None for file in self.files):
            return None
        parts = "\n".join(f"{file.path}\0{file.digest}" for file in self.files)
        return blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def with_digests(self, digests: dict[str, str]) -> "Dataset":
        """The same dataset with the content digests by URI filled in."""
        files = tuple(
            file if file.digest else file.model_copy(update={"digest": digests.get(file.uri)})
            for file in self.files
        )
        return self.model_copy(update={"files": files})

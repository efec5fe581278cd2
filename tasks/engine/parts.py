"""Parquet parts that workers write for later passes: whole or not at all."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from io import BytesIO
from itertools import accumulate

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from tasks.engine.dataset import Frozen, RowGroup
from tasks.engine.frames import open_input
from tasks.engine.home import write_atomically


class Slice(Frozen):
    """`rows` rows of a part from row `start` on."""

    uri: str
    start: int
    rows: int


def write_part(uri: str, rows: pd.DataFrame | pa.Table) -> None:
    """`rows` as one Parquet file with one row group; they are few by construction."""
    write_atomically(uri, _encoded(rows))


def _encoded(rows: pd.DataFrame | pa.Table) -> bytes:
    buffer = BytesIO()
    if isinstance(rows, pd.DataFrame):
        rows = pa.Table.from_pandas(rows, preserve_index=False)
    texts = [field.name for field in rows.schema if not _is_plain(field.type)]
    pq.write_table(
        rows,
        buffer,
        row_group_size=max(1, rows.num_rows),
        compression="lz4",
        # numbers that hardly repeat take twice as long by way of a dictionary
        use_dictionary=texts or False,
        write_page_checksum=True,
    )
    return buffer.getvalue()


def _is_plain(arrow: pa.DataType) -> bool:
    return bool(pa.types.is_floating(arrow) or pa.types.is_uint64(arrow))


def part_group(uri: str, rows: int) -> RowGroup:
    """The row group of a part, for folding over parts.

    Without a stamp: what stands under a key never changes, even if two runs put it there at once.
    Each has a layout of its own: a column of texts may be empty in one of them.
    """
    return RowGroup(uri=uri, path=uri, index=0, rows=rows, start=0, layout=uri)


def write_slices(folder: str, table: pa.Table, rows: Sequence[int]) -> list[tuple[Slice, ...]]:
    """A table as a part in `folder`, cut into slices of so many `rows`; of none there is no slice.

    The part is named by the digest of its bytes, so what stands under a name never changes.
    """
    if not table.num_rows:
        return [() for _ in rows]
    content = _encoded(table)
    uri = f"{folder}/{blake2b(content, digest_size=16).hexdigest()}.parquet"
    write_atomically(uri, content)
    starts = [0, *accumulate(rows)]
    return [
        (Slice(uri=uri, start=start, rows=count),) if count else ()
        for start, count in zip(starts, rows, strict=False)
    ]


def joined(slices: Iterable[Slice]) -> tuple[Slice, ...]:
    """The same rows in the same order, neighbours of one part as one slice."""
    found: list[Slice] = []
    for part in slices:
        last = found[-1] if found else None
        if last and last.uri == part.uri and last.start + last.rows == part.start:
            found[-1] = Slice(uri=last.uri, start=last.start, rows=last.rows + part.rows)
        else:
            found.append(part)
    return tuple(found)


def read_slices(slices: Sequence[Slice], below: float) -> Iterator[pd.DataFrame]:
    """The frames of slices, in order, without their last column and the rows where it reaches
    `below`; categories read as they were written.
    """

    @lru_cache(maxsize=4)
    def part(uri: str) -> pa.Table:
        with open_input(uri) as file:
            # a few thousand rows: threads would only wait for each other
            return pq.read_table(file, use_threads=False, page_checksum_verification=True)

    for each in slices:
        table = part(each.uri).slice(each.start, each.rows)
        table = table.filter(pc.less(table.column(table.num_columns - 1), below))
        table = table.select(range(table.num_columns - 1))
        yield table.to_pandas(split_blocks=True)


def present(uris: Iterable[str]) -> set[str]:
    """Those of `uris` that exist; each of their folders is listed once."""
    folders: dict[str, set[str]] = {}
    for uri in uris:
        folder, _, name = uri.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    found: set[str] = set()
    for folder, names in folders.items():
        filesystem, path = url_to_fs(folder)
        filesystem.invalidate_cache(path)
        try:
            listed = filesystem.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            continue
        there = {name.rstrip("/").rpartition("/")[2] for name in listed}
        found |= {f"{folder}/{name}" for name in names & there}
    return found

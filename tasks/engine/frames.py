"""A row group becomes a frame: the one place that knows pandas from cuDF and a path from a URI."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from tasks.engine.dataset import RowGroup


def open_input(uri: str) -> Any:
    """A random-access Arrow file: memory-mapped where local, through fsspec elsewhere."""
    if "://" not in uri:
        return pa.memory_map(uri)
    filesystem, path = fsspec.core.url_to_fs(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)).open_input_file(path)


@lru_cache(maxsize=64)
def _footer(uri: str) -> Any:
    """Footers are parsed once per worker and file, not once per row group."""
    with open_input(uri) as file:
        return pq.read_metadata(file)


def read_arrow(batch: Sequence[RowGroup], columns: Sequence[str]) -> pa.Table:
    """Row groups of one file as an Arrow table with just `columns`, strings as dictionaries."""
    uri = batch[0].uri
    metadata = _footer(uri)
    schema = metadata.schema.to_arrow_schema()
    texts = [
        name
        for name in columns
        if pa.types.is_string(schema.field(name).type)
        or pa.types.is_large_string(schema.field(name).type)
    ]
    with open_input(uri) as source:
        file = pq.ParquetFile(
            source, metadata=metadata, read_dictionary=texts, page_checksum_verification=True
        )
        return file.read_row_groups(
            [group.index for group in batch], columns=list(columns), use_threads=False
        )


def read_frame(batch: Sequence[RowGroup], columns: Sequence[str]) -> pd.DataFrame:
    """The same as a pandas frame of (rows, len(columns)), columns in the order asked for."""
    table = read_arrow(batch, columns)
    return table.select(list(columns)).to_pandas(self_destruct=True, split_blocks=True)


def content_digest(batch: Sequence[RowGroup]) -> str:
    """BLAKE2b of the bytes that the row groups' columns take in their file."""
    metadata = _footer(batch[0].uri)
    digest = blake2b(digest_size=16)
    with open_input(batch[0].uri) as file:
        for group in batch:
            start, end = _byte_range(metadata.row_group(group.index))
            file.seek(start)
            digest.update(file.read_buffer(end - start))
    return digest.hexdigest()


def _byte_range(row_group: Any) -> tuple[int, int]:
    starts, ends = [], []
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        start = column.data_page_offset
        if column.has_dictionary_page:
            start = min(start, column.dictionary_page_offset)
        starts.append(start)
        ends.append(start + column.total_compressed_size)
    return min(starts), max(ends)

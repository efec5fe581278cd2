"""Parquet parts that workers write for later passes: whole or not at all."""

from collections.abc import Sequence
from io import BytesIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.engine.dataset import RowGroup
from tasks.engine.frames import open_input
from tasks.engine.home import write_atomically


def write_part(uri: str, rows: pd.DataFrame | pa.Table) -> None:
    """`rows` as one Parquet file with one row group; they are few by construction."""
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
    write_atomically(uri, buffer.getvalue())


def _is_plain(arrow: pa.DataType) -> bool:
    return pa.types.is_floating(arrow) or pa.types.is_uint64(arrow)


def part_group(uri: str, rows: int) -> RowGroup:
    """The row group of a part, for folding over parts.

    Without a stamp: what stands under a key never changes, even if two runs put it there at once.
    """
    return RowGroup(uri=uri, path=uri, index=0, rows=rows, start=0)


def read_parts(uris: Sequence[str]) -> list[pd.DataFrame]:
    """The frames of small parts, in order; categories read as they were written."""
    frames = []
    for uri in uris:
        with open_input(uri) as file:
            frames.append(
                pq.read_table(file, page_checksum_verification=True).to_pandas(split_blocks=True)
            )
    return frames

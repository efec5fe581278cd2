"""A row group becomes a frame: the one place that knows pandas from cuDF and a path from a URI.

What comes after is written once, in NumPy's functions: on a CuPy array of a cuDF frame they call
CuPy's (its `__array_function__`, `__array_ufunc__` and `like=`), and the rows stay on the GPU.
"""

import glob
import math
import os
from collections.abc import Sequence
from datetime import datetime
from functools import cache, lru_cache, singledispatch
from hashlib import blake2b
from typing import Any, Literal

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from tasks.engine.dataset import Batch, RowGroup, by_file
from tasks.engine.errors import UserError
from tasks.engine.secrets import redact, resolved

Device = Literal["cpu", "cuda"]


def open_input(uri: str) -> Any:
    """A random-access Arrow file: memory-mapped where local, through fsspec elsewhere."""
    if "://" not in uri:
        return pa.memory_map(uri)
    filesystem, path = fsspec.core.url_to_fs(resolved(uri))
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)).open_input_file(path)


def modified(uri: str) -> tuple[int, str]:
    """Size in bytes, and when the file changed: nanoseconds since 1970, or what a store calls it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if "://" not in uri:
        status = os.stat(uri)
        return status.st_size, str(status.st_mtime_ns)
    filesystem, path = fsspec.core.url_to_fs(resolved(uri))
    info = filesystem.info(path)
    return int(info.get("size") or 0), changed_at(info)


def changed_at(info: dict[str, Any]) -> str:
    """What fsspec's information about a file says of its last change, "" where it says nothing."""
    keys = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
    value = next((info[key] for key in keys if info.get(key)), "")
    # a listing may give the number, and the file itself the date
    return str(value.timestamp() if isinstance(value, datetime) else value)


# Batches come file by file. A footer in memory takes 1 KB for each column of each row group, which
# is 15 MB for 16 row groups × 1,000 columns.
FOOTERS = 4


@lru_cache(maxsize=FOOTERS)
def _footer(uri: str, stamp: str) -> Any:
    """Footers are parsed once for all row groups of a file that are read one after the other."""
    _unchanged(uri, stamp)
    try:
        with open_input(uri) as file:
            return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise _damaged(uri, "its footer", _first_line(error)) from None


def forget_footers() -> None:
    _footer.cache_clear()


def _unchanged(uri: str, stamp: str) -> None:
    """Raises UserError where the file is not the one that was listed."""
    try:
        found = ":".join(map(str, modified(uri)))
    except FileNotFoundError:
        raise UserError(
            f"The file {redact(uri)} was removed while it was read. Run again."
        ) from None
    if stamp and found != stamp:
        raise UserError(
            f"The file {redact(uri)} changed while it was read. Run again once nothing writes to "
            "it."
        )


def _still(uri: str, stamp: str) -> None:
    """`_unchanged` after every reading, where it costs a look at the folder alone.

    A file of the same layout that took the place of the one listed would be read without a word.
    """
    if stamp and "://" not in uri:
        _unchanged(uri, stamp)


def read_arrow(batch: Sequence[RowGroup], columns: Sequence[str]) -> pa.Table:
    """A batch as an Arrow table with just `columns`, texts as dictionaries.

    Raises:
        UserError: a file changed since it was listed, or a page of it is damaged.
    """
    tables = [_read_file(groups, columns) for groups in by_file(batch)]
    # of one layout, but a column that is nullable here may not be there
    return pa.concat_tables(tables, promote_options="default") if len(tables) > 1 else tables[0]


def _read_file(batch: Batch, columns: Sequence[str]) -> pa.Table:
    uri, stamp = batch[0].uri, batch[0].stamp
    metadata = _footer(uri, stamp)
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
        try:
            table = file.read_row_groups(
                [group.index for group in batch], columns=list(columns), use_threads=False
            )
        except (OSError, pa.ArrowException) as error:
            _unchanged(uri, stamp)
            raise _damaged(uri, _places(batch), _first_line(error)) from None
    _still(uri, stamp)
    return table.select(list(columns))


def read_frame(
    batch: Sequence[RowGroup], columns: Sequence[str], device: Device = "cpu"
) -> pd.DataFrame:
    """The same as a frame of (rows, len(columns)), columns in the order asked for.

    It is pandas' on the CPU and cuDF's on a GPU, whose reader checks no checksums of pages.
    """
    if device == "cuda":
        on_gpu: pd.DataFrame = _read_cudf(batch, columns)
        return on_gpu
    table = read_arrow(batch, columns)
    try:
        return _pandas(table)
    except pa.ArrowException as error:
        cause = f"values that are not what their column says ({_first_line(error)})"
        if len(files := by_file(batch)) > 1:
            for groups in files:  # which tells the one
                read_frame(groups, columns)
        raise _damaged(batch[0].uri, _places(batch), cause) from None


_LONG = {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype()}


def _pandas(table: pa.Table) -> pd.DataFrame:
    # dates as Python objects would be slow to read; as timestamps they are numbers
    fields = [
        field.with_type(pa.timestamp("s")) if pa.types.is_date(field.type) else field
        for field in table.schema
    ]
    table = table.cast(pa.schema(fields)) if fields != list(table.schema) else table
    kinds: dict[Any, Any] = {pa.bool_(): pd.BooleanDtype()}
    for column in table.columns:
        # float64 has missing values, but not every integer
        if column.type in _LONG and column.null_count:
            kinds[column.type] = _LONG[column.type]
    frame: pd.DataFrame = table.to_pandas(
        types_mapper=kinds.get,
        ignore_metadata=True,  # which makes an index of columns
        self_destruct=True,
        split_blocks=True,
        date_as_object=False,
    )
    return frame


def _read_cudf(batch: Sequence[RowGroup], columns: Sequence[str]) -> Any:
    cudf, files = _cudf(), by_file(batch)
    for groups in files:
        _footer(groups[0].uri, groups[0].stamp)

    def by_arrow() -> Any:
        return cudf.DataFrame.from_arrow(_without_dictionaries(read_arrow(batch, columns)))

    if any("::" in group.uri or "://" in group.uri for group in batch):
        return by_arrow()
    try:
        frame = cudf.read_parquet(
            [glob.escape(groups[0].uri) for groups in files],  # cuDF takes a path for a pattern
            columns=list(columns),
            row_groups=[[group.index for group in groups] for groups in files],
            use_pandas_metadata=False,
            # folders named day=1 give no column, nor take the place of a file's own
            dataset_kwargs={"partitioning": None},
        )
    except (LookupError, OSError, RuntimeError, TypeError, ValueError):
        # stale metadata of pandas', say; Arrow tells where the file is damaged or another by now
        return by_arrow()
    for groups in files:
        _still(groups[0].uri, groups[0].stamp)
    # cuDF makes an index of what pandas called one, whatever `use_pandas_metadata` says
    return frame[list(columns)] if set(columns) <= set(frame.columns) else by_arrow()


def _without_dictionaries(table: pa.Table) -> pa.Table:
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


@singledispatch
def on_host(values: Any) -> Any:
    """An array or a frame in the host's memory, NumPy's or pandas'."""
    return values


def device_memory() -> tuple[int, int]:
    """Free and all bytes of this process's GPU."""
    import cupy

    free, total = cupy.cuda.runtime.memGetInfo()
    return int(free), int(total)


_PLAIN = {"number": "biuf", "bool": "b"}  # by kind, what becomes float64 as it is


@cache
def _cudf() -> Any:
    """cuDF, with what reads its columns known to `scoring`."""
    import cudf
    import cupy

    # not for everybody who reads a file: it brings XGBoost along
    from tasks.engine.scoring import factorized, float_values, seconds_of

    def as_float(series: Any, kind: Any) -> Any:
        if kind in _PLAIN and series.dtype.kind in _PLAIN[kind]:
            return series.astype("float64").to_cupy(na_value=math.nan)
        if (kind, series.dtype.kind) in (("time", "M"), ("duration", "m")):
            ticks = series.astype("int64").fillna(0).to_cupy()
            # a type with a time zone is pandas', one without NumPy's
            unit = getattr(series.dtype, "unit", None) or np.datetime_data(series.dtype)[0]
            return seconds_of(ticks, unit, series.isna().to_cupy())
        # decimals, texts and what is not of its kind: as on the CPU, with the same messages
        return cupy.asarray(float_values(on_host(series.to_frame())[series.name], kind))

    def codes_and_values(series: Any) -> Any:
        present = series.nans_to_nulls() if series.dtype.kind == "f" else series
        codes, values = present.factorize(use_na_sentinel=True)
        return codes.astype(np.int64), values.to_pandas()

    float_values.register(cudf.Series, as_float)
    factorized.register(cudf.Series, codes_and_values)
    on_host.register(cupy.ndarray, lambda array: array.get())
    on_host.register(cudf.DataFrame, lambda frame: _pandas(frame.to_arrow(preserve_index=False)))
    return cudf


def _places(batch: Sequence[RowGroup]) -> str:
    return f"row groups {', '.join(str(group.index) for group in batch)}"


def _damaged(uri: str, place: str, cause: str) -> UserError:
    return UserError(
        f"The file {redact(uri)} is damaged ({place}): {cause}. Restore it or write it anew."
    )


def content_digests(batch: Batch) -> list[str]:
    """Of row groups of one file: BLAKE2b of the bytes that each takes in it, all columns of it."""
    uri = batch[0].uri
    metadata = _footer(uri, batch[0].stamp)
    found = []
    with open_input(uri) as file:
        for group in batch:
            start, end = _byte_range(metadata.row_group(group.index))
            file.seek(start)
            found.append(blake2b(file.read_buffer(end - start), digest_size=16).hexdigest())
    return found


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")

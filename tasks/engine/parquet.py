"""Parquet in place: footers are read, never rows."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.engine.dataset import Dataset, File
from tasks.engine.digests import Footer
from tasks.engine.errors import UserError
from tasks.engine.frames import open_input
from tasks.engine.home import digest_of
from tasks.engine.inputs import SourceFile, too_large
from tasks.engine.schema import EXACT, columns_of, rounded, unify
from tasks.engine.sources import Source, partition_note

Remembered = Callable[[str, int, str], str | None]

_MAGIC = b"PAR1"
_THREADS = 16
_CHECKED_CHUNKS = 50_000
_PROBED_BYTES = 10_000_000


def inspect(
    source: Source,
    remembered: Remembered = lambda uri, size, modified: None,
    max_gigabytes: float = float("inf"),
    footers: Mapping[str, Footer] | None = None,
) -> Dataset:
    """The row groups of all files under one schema.

    `remembered` gives the content digest of (uri, size, modified) if one is known; `footers` are
    what `footers_of` found.

    Raises:
        UserError: a file is damaged, the files don't fit together, there are no rows, or they
            open to more than `max_gigabytes`.
    """
    by_uri = footers_of(source) if footers is None else footers
    found = [by_uri[file.uri] for file in source.files]
    opened = sum(footer.opened for footer in found)
    if opened > max_gigabytes * 1e9:
        raise too_large(source.shown, source.size, max_gigabytes)
    shown = [file.shown for file in source.files]
    columns, notes = unify(list(zip(shown, (footer.columns for footer in found), strict=True)))
    names = {column.name for column in columns}
    wide = [
        rounded(name, column)
        for name, footer in zip(shown, found, strict=True)
        for column in footer.wide
        if column in names
    ]
    layouts = {columns: digest_of(columns) for columns in {footer.columns for footer in found}}
    files = [
        File(
            uri=file.uri,
            path=file.path,
            size=file.size,
            modified=file.modified,
            row_groups=footer.row_groups,
            digest=remembered(file.uri, file.size, file.modified) if file.modified else None,
            layout=layouts[footer.columns],
        )
        for file, footer in zip(source.files, found, strict=True)
    ]
    notes = (*notes, *partition_note(source), *dict.fromkeys(wide))
    dataset = Dataset(source=source.shown, columns=columns, files=tuple(files), notes=notes)
    check_rows(dataset)
    return dataset


def footers_of(source: Source, known: Mapping[str, Footer] | None = None) -> dict[str, Footer]:
    """The footers of all files by URI; those that are `known` are not read.

    Raises:
        UserError: a file is damaged; of several, the first is named.
    """
    found = dict(known or {})
    files = [file for file in source.files if file.uri not in found]
    with ThreadPoolExecutor(max(1, min(_THREADS, len(files)))) as pool:
        for file, footer in zip(files, pool.map(_outcome, files), strict=True):
            if isinstance(footer, Exception):
                raise footer
            found[file.uri] = footer
    return found


def footer_digest(uri: str) -> str:
    """BLAKE2b of a Parquet file's footer, which no checksum of a page covers; "" for none."""
    with open_input(uri) as stream:
        size = stream.size()
        length = int.from_bytes(stream.read_at(4, size - 8), "little") if size >= 12 else size
        if length > size - 12:
            return ""
        return blake2b(stream.read_at(length + 8, size - 8 - length), digest_size=16).hexdigest()


def check_rows(dataset: Dataset) -> None:
    """Raises UserError where the source has no row, or a single one."""
    if dataset.rows == 0:
        raise UserError(f"{dataset.source} has columns but no rows.")


def _outcome(file: SourceFile) -> Any:
    """The footer, or the error: the first file's error is shown, not the fastest's."""
    try:
        return _footer(file)
    except UserError as error:
        return error


def _footer(file: SourceFile) -> Footer:
    try:
        with open_input(file.uri) as stream:
            _check_ends(file, stream)
            parquet = pq.ParquetFile(stream)
            if file.size <= _PROBED_BYTES:
                _probe(file, parquet)
            return _summary(file, parquet.metadata)
    except FileNotFoundError:
        raise UserError(f"{file.shown} is gone: it was there when the source was listed.") from None
    except PermissionError:
        raise UserError(f"{file.shown} can't be read: permission denied.") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise _damaged(file, _sentence(error)) from None


def _summary(file: SourceFile, metadata: Any) -> Footer:
    schema = metadata.schema.to_arrow_schema()
    columns = columns_of(schema, file.shown)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_groups = tuple(group.num_rows for group in groups)
    if any(rows < 0 for rows in row_groups) or sum(row_groups) != metadata.num_rows:
        raise _damaged(file, "its row groups don't add up to its rows")
    step = 1 + len(groups) * max(1, metadata.num_columns) // _CHECKED_CHUNKS
    for group in groups[::step]:
        _check_places(file, group)
    width = sum(_width(field.type) for field in schema)
    opened = max(sum(group.total_byte_size for group in groups), metadata.num_rows * width)
    integers = {f.name for f in schema if pa.types.is_integer(f.type) and f.type.bit_width == 64}
    return Footer(
        columns=columns,
        row_groups=row_groups,
        opened=opened,
        wide=_wide(groups[::step], integers),
    )


def _probe(file: SourceFile, parquet: Any) -> None:
    """Reads one row of each row group: what is wrong with a chunk is an error here.

    Looking at the chunk's metadata from Python would end the process instead (pyarrow 25).
    """
    for index in range(parquet.metadata.num_row_groups):
        try:
            next(parquet.iter_batches(1, row_groups=[index], use_threads=False), None)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(file, f"row group {index}: {_sentence(error)}") from None


def _sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _check_ends(file: SourceFile, stream: Any) -> None:
    """Both magic marks and the footer's length, before anything is parsed."""
    size = stream.size()
    if not size:
        raise UserError(f"{file.shown} is empty (0 bytes). Write it again or leave it out.")
    head = stream.read_at(min(size, 8), 0)
    if head[:4] == b"PARE":
        raise UserError(f"{file.shown} is encrypted Parquet, which is not read.")
    if head[:4] != _MAGIC:
        text = head.isascii() and not any(byte < 32 and byte not in b"\t\r\n" for byte in head)
        hint = "It seems to be text: set data.format=csv, or rename it." if text else ""
        hint = "It is a gzip file: unpack it." if head[:2] == b"\x1f\x8b" else hint
        raise UserError(
            f"{file.shown} is not a Parquet file: it does not begin with PAR1. "
            f"{hint or 'Write it again.'}"
        )
    if size < 12 or stream.read_at(4, size - 4) != _MAGIC:
        raise _damaged(file, "it does not end in PAR1: it was cut short")
    length = int.from_bytes(stream.read_at(4, size - 8), "little")
    if length > size - 12:
        raise _damaged(file, f"its footer claims {length:,} of the file's {size:,} bytes")


def _damaged(file: SourceFile, cause: str) -> UserError:
    return UserError(f"{file.shown} is a damaged Parquet file ({cause}). Write it again.")


def _check_places(file: SourceFile, group: Any) -> None:
    """Raises UserError for column chunks that lie outside of the file."""
    for index in range(group.num_columns if group.num_rows else 0):
        chunk = group.column(index)
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        if start < 4 or start + chunk.total_compressed_size > file.size - 8 > 0:
            raise _damaged(file, f"the column {chunk.path_in_schema!r} lies outside of it")


def _width(arrow: Any) -> int:
    """Bytes of a value in memory; texts count as their offsets."""
    try:
        return max(1, int(arrow.bit_width) // 8)
    except (ValueError, AttributeError):
        return 4


def _wide(groups: Sequence[Any], integers: set[str]) -> tuple[str, ...]:
    """Integer columns whose statistics tell of values beyond 2^53."""
    found: dict[str, None] = {}
    for group in groups:
        for index in range(group.num_columns):
            chunk = group.column(index)
            name = chunk.path_in_schema
            if name not in integers or name in found or not chunk.is_stats_set:
                continue
            known = chunk.statistics
            if known.has_min_max and max(-known.min, known.max) > EXACT:
                found[name] = None
    return tuple(found)

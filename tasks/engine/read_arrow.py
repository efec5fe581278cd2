"""Arrow IPC, as a file (Feather) or a stream, read as a stream in either case."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tasks.engine.config import DataConfig
from tasks.engine.errors import UserError
from tasks.engine.inputs import Input, stream
from tasks.engine.reading import Reading
from tasks.engine.schema import columns_of
from tasks.engine.spool import plain_type

_MAGIC = b"ARROW1"
_END = b"\xff\xff\xff\xff\0\0\0\0"


def read_arrow(source: Input, config: DataConfig) -> Reading:
    """Raises UserError for a file that is cut short or no Arrow file."""
    end = _End(source.chunks())
    file = stream(end)
    head = file.peek(8)[:8]
    if not head:
        raise UserError(f"{source.shown} is empty.")
    if head.startswith(b"FEA1"):
        raise UserError(
            f"{source.shown} is a Feather file of version 1. Write it again as version 2, or as "
            "Parquet."
        )
    is_file = head.startswith(_MAGIC)
    if is_file:
        file.read(8)  # behind the magic an IPC file is a stream, with a footer behind its end
    try:
        reader = pa.ipc.open_stream(pa.PythonFile(file, mode="r"))
        columns_of(reader.schema, source.shown)
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        raise _damaged(source, error) from None
    fields = [pa.field(field.name, plain_type(field.type)) for field in reader.schema]
    schema = pa.schema(fields)
    return Reading(schema, _batches(source, reader, file, end, schema, is_file))


class _End:
    """Passes chunks on and keeps the last bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.tail = b""

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.tail = (self.tail + chunk[-8:])[-8:]
            yield chunk


def _batches(
    source: Input, reader: Any, file: Any, end: _End, schema: Any, is_file: bool
) -> Iterator[Any]:
    try:
        for batch in reader:
            batch.validate(full=True)  # a damaged offset would end the process further on
            arrays = [
                array.cast(field.type) for array, field in zip(batch.columns, schema, strict=True)
            ]
            yield pa.record_batch(arrays, schema=schema)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise _damaged(source, error) from None
    while file.read(1 << 20):
        pass
    whole = end.tail.endswith(_MAGIC) if is_file else end.tail == _END
    if not whole:
        raise UserError(
            f"{source.shown} has no end mark: it was cut short, or its writer was not closed. "
            "Write it again."
        )


def _damaged(source: Input, error: Exception) -> UserError:
    return UserError(
        f"{source.shown} can't be read as Arrow IPC ({str(error).rstrip('.')}). It was cut short, "
        "damaged, or is of another format: write it again or set data.format."
    )

"""CSV and TSV, strictly: what other readers repair in silence is refused with its line.

A first pass reads every field as text and finds each column's type over the whole file; the second
converts. Where Arrow gives up, or quotes don't pair, a look in plain Python finds the line.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from tasks.engine.config import DataConfig
from tasks.engine.errors import UserError
from tasks.engine.infer import BOOLEANS, Evidence, TextColumn
from tasks.engine.inputs import Input, stream
from tasks.engine.reading import Reading
from tasks.engine.schema import check_names

BLOCK = 1 << 22
_SEPARATORS = {";": ";", "\t": "\\t", "|": "|"}


def read_csv(source: Input, config: DataConfig) -> Reading:
    """Raises UserError for whatever is not a table of one width in the encoding that was said."""
    separator = config.separator or ","
    return _read(source, config, separator)


def read_tsv(source: Input, config: DataConfig) -> Reading:
    """As CSV, with a tab between fields unless data.separator says otherwise."""
    return _read(source, config, config.separator or "\t")


def csv_header(source: Input, config: DataConfig) -> list[str]:
    """The column names alone. Raises UserError for what is no text or no header."""
    return _header(source, config.separator or ",")


def tsv_header(source: Input, config: DataConfig) -> list[str]:
    """As `csv_header`."""
    return _header(source, config.separator or "\t")


def _read(source: Input, config: DataConfig, separator: str) -> Reading:
    names = _header(source, separator)
    columns = [TextColumn(name, guessed=name not in source.texts) for name in names]
    quotes = _Quotes()
    rows = 0
    try:
        texts = {name: pa.string() for name in names}
        for batch in _batches(quotes.counted(source.text()), config, separator, texts):
            rows += batch.num_rows
            for column, array in zip(columns, batch.columns, strict=True):
                column.see(array)
    except pa.ArrowInvalid as error:
        _find_fault(source, separator, len(names))
        raise UserError(f"{source.shown} can't be read as CSV: {error}.") from None
    if quotes.count % 2:
        _find_fault(source, separator, len(names))
    _check_end(source, rows, separator)
    types = {column.name: column.type for column in columns}
    return Reading(
        schema=pa.schema(list(types.items())),
        batches=_batches(source.text(), config, separator, types),
        evidence=_evidence(source, separator, columns),
    )


def _batches(
    chunks: Iterable[bytes], config: DataConfig, separator: str, types: dict[str, Any]
) -> Iterator[Any]:
    """Record batches with the columns as `types`; nothing for a header alone."""
    missing = list(dict.fromkeys(["", *config.missing_values]))
    reader = pacsv.open_csv(
        pa.PythonFile(stream(chunks), mode="r"),
        read_options=pacsv.ReadOptions(block_size=BLOCK, use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types=types,
            null_values=missing,
            strings_can_be_null=True,
            true_values=list(BOOLEANS[0]),
            false_values=list(BOOLEANS[1]),
            check_utf8=False,
        ),
    )
    yield from reader


def _header(source: Input, separator: str) -> list[str]:
    """The column names. Raises UserError for an empty file or a header that can't be one."""
    first = next(source.text(), b"")
    if not first.strip():
        raise UserError(f"{source.shown} is empty.")
    lines = io.StringIO(first.decode("utf-8", "replace"), newline="")
    names = next((row for row in csv.reader(lines, delimiter=separator) if row), [])
    if len(names) == 1:
        for other, written in _SEPARATORS.items():
            if other != separator and other in names[0]:
                raise UserError(
                    f"{source.shown} has one column, {_cut(names[0])!r}: its fields seem to be "
                    f'separated by {other!r}. Set data.separator="{written}".'
                )
        if "," in names[0] and separator != ",":
            raise UserError(
                f"{source.shown} has one column, {_cut(names[0])!r}: its fields seem to be "
                "separated by ','. Set data.separator=\",\"."
            )
    check_names(names, source.shown)
    return names


def _check_end(source: Input, rows: int, separator: str) -> None:
    """Raises UserError for a last line that breaks off behind a separator."""
    if rows and source.tail.endswith(separator.encode()):
        raise UserError(
            f"{source.shown}, line {source.lines}: the last line ends in a separator without a "
            "line end, so the file was probably cut short. Write it again."
        )


class _Quotes:
    """Counts quote characters on their way: an odd number means that one is open."""

    def __init__(self) -> None:
        self.count = 0

    def counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.count += chunk.count(b'"')
            yield chunk


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    return io.TextIOWrapper(stream(chunks), encoding="utf-8", newline="")


def records(source: Input, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line of its start, fields) of every record that is not blank, the header first.

    Raises csv.Error where a quote is not closed, or followed by something else than a separator.
    """
    before = csv.field_size_limit(BLOCK)
    try:
        reader = csv.reader(_lines(source.text()), delimiter=separator, strict=True)
        start = 1
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(start, str(error)) from None
    finally:
        csv.field_size_limit(before)


def _find_fault(source: Input, separator: str, width: int) -> None:
    """Raises UserError for the first record of another width, or with quotes that don't pair."""
    try:
        for line, fields in records(source, separator):
            if len(fields) != width:
                raise _other_width(source, line, fields, width)
    except csv.Error as error:
        raise _open_quote(source, error.args[0]) from None


def _open_quote(source: Input, line: int) -> UserError:
    return UserError(
        f'{source.shown}, line {line}: a quote (") is opened and not closed as it should be. '
        'Close it, and write a quote inside a quoted field as "".'
    )


def _other_width(source: Input, line: int, fields: list[str], width: int) -> UserError:
    count = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
    if any("\n" in field for field in fields):
        hint = "a quote that is opened there may not be closed"
    elif len(fields) > width:
        hint = "a separator within a field must be quoted"
    else:
        hint = "the line may have been cut short"
    return UserError(
        f"{source.shown}, line {line}: {count} where the header has {width}; {hint}. Correct the "
        "line or write the file again."
    )


def _evidence(source: Input, separator: str, columns: list[TextColumn]) -> tuple[Evidence, ...]:
    """Row numbers become lines: one more look at the records, up to the last row in question."""
    found = [(c.name, *known) for c in columns if (known := c.evidence())]
    wanted = {row for _, _, row, _ in found}
    lines: dict[int, int] = {}
    try:
        for number, (line, _) in enumerate(records(source, separator), -1):
            if number in wanted:
                lines[number] = line
            if len(lines) == len(wanted):
                break
    except csv.Error as error:
        raise _open_quote(source, error.args[0]) from None
    return tuple(
        Evidence(column=name, mostly=mostly, line=lines[row], text=text)
        for name, mostly, row, text in found
    )


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"

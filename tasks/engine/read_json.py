"""JSON lines: one object per line. Keys that a line lacks are missing values."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from tasks.engine.config import DataConfig
from tasks.engine.errors import UserError
from tasks.engine.inputs import Input
from tasks.engine.reading import Reading
from tasks.engine.spool import spooled

_BLOCK = 1 << 22
_LONG = re.compile(rb"(?<![\w.+\-\"])-?\d{19,}(?=\s*[,}\]])")


def read_json(source: Input, config: DataConfig) -> Reading:
    """Raises UserError with the line of what is no object, or changes its type."""
    return spooled(source, _tables(source), times_in_text=True)


def _tables(source: Input) -> Iterator[Any]:
    line = 1
    for block in _blocks(source):
        if line == 1 and block.lstrip().startswith(b"["):
            raise UserError(
                f"{source.shown} is a JSON array. JSON lines are read: one object per line (in "
                'pandas: to_json(…, orient="records", lines=True)).'
            )
        if block.strip():
            _check_integers(source, block, line)
            yield _parse(source, block, line)
        line += block.count(b"\n")
    if line == 1 and not source.tail.strip():
        raise UserError(f"{source.shown} is empty.")


def _blocks(source: Input) -> Iterator[bytes]:
    """Whole lines, about _BLOCK bytes at a time."""
    parts: list[bytes] = []
    size = 0
    for chunk in source.text():
        parts.append(chunk)
        size += len(chunk)
        if size >= _BLOCK and b"\n" in chunk:
            head, newline, rest = b"".join(parts).rpartition(b"\n")
            yield head + newline
            parts, size = [rest], len(rest)
    if size:
        yield b"".join(parts)


def _parse(source: Input, block: bytes, line: int) -> Any:
    """Texts that Arrow would take for timestamps stay text: it drops their zones."""
    table = _read(source, block, line, {})
    times = {field.name: pa.string() for field in table.schema if pa.types.is_timestamp(field.type)}
    return _read(source, block, line, times) if times else table


def _read(source: Input, block: bytes, line: int, types: dict[str, Any]) -> Any:
    try:
        return pajson.read_json(
            io.BytesIO(block),
            read_options=pajson.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pajson.ParseOptions(
                explicit_schema=pa.schema(list(types.items())), newlines_in_values=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _fault(source, block, line, str(error)) from None


def _fault(source: Input, block: bytes, line: int, cause: str) -> UserError:
    """The first line that is no object or gives a key another type, as a sentence."""
    kinds: dict[str, str] = {}
    for number, text in enumerate(block.split(b"\n"), line):
        if not text.strip():
            continue
        place = f"{source.shown}, line {number}"
        try:
            value = json.loads(text)
        except ValueError as error:
            return UserError(
                f"{place} is not JSON ({error}). Every line holds one object. Correct the line or "
                "write the file again."
            )
        if not isinstance(value, dict):
            return UserError(
                f"{place} holds {_kind(value)} where one object per line is expected. Write "
                '{"column": value, …}.'
            )
        for name, cell in value.items():
            kind = _kind(cell)
            known = kinds.setdefault(name, kind) if kind != "null" else kind
            if kind != known:
                return UserError(
                    f"{place}: the column {name!r} holds {kind} ({json.dumps(cell)[:60]}) where "
                    f"lines before it hold {known}. Give the column one type."
                )
    return UserError(f"{source.shown}, behind line {line} can't be read as JSON lines: {cause}.")


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    names = {int: "a number", float: "a number", str: "text", list: "an array", dict: "an object"}
    return names.get(type(value), "null")


def _check_integers(source: Input, block: bytes, line: int) -> None:
    """Raises UserError for an integer that doesn't fit 64 bits, which Arrow would round."""
    for found in _LONG.finditer(block):
        start = block.rfind(b"\n", 0, found.start()) + 1
        end = block.find(b"\n", start)
        try:
            value = json.loads(block[start : end if end >= 0 else len(block)])
        except ValueError:
            continue
        for name, cell in value.items() if isinstance(value, dict) else ():
            if type(cell) is int and not -(2**63) <= cell < 2**63:
                place = f"{source.shown}, line {line + block[:start].count(bytes([10]))}"
                raise UserError(
                    f"{place}: the integer {cell} in the column {name!r} does not fit 64 bits. "
                    "Write it as a float, or as text."
                )

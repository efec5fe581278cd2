"""Tables that arrive one after another, each with its own types, as one stream with one schema.

Databases, JSON lines and partitions of a frame tell a column's type piece by piece: integers here,
floats there, nothing but missing values elsewhere. The pieces wait in the source's scratch folder
until the last is known.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.engine.errors import UserError
from tasks.engine.infer import TextColumn
from tasks.engine.inputs import Input
from tasks.engine.reading import Reading
from tasks.engine.schema import check_names, columns_of


def spooled(source: Input, tables: Iterable[Any], times_in_text: bool = False) -> Reading:
    """The rows of `tables` in order. Columns that a table lacks are missing values there.

    `times_in_text` reads text columns as dates or timestamps where all of a column are such.

    Raises:
        UserError: there is no table, or a column changes between types that don't fit together.
    """
    types: dict[str, Any] = {}
    texts: dict[str, TextColumn] = {}
    files: list[Path] = []
    rows = 0
    for given in tables:
        check_names(given.schema.names, source.shown)
        table = _plain(given)
        for field in table.schema:
            known = types.get(field.name, pa.null())
            types[field.name] = _wider(source, field.name, known, field.type, rows)
            guessed = times_in_text and field.name not in source.texts
            if guessed and pa.types.is_string(field.type):
                column = texts.setdefault(field.name, TextColumn(field.name, numbers=False))
                for chunk in table[field.name].chunks:
                    column.see(chunk)
        files.append(Path(source.scratch) / f"{len(files)}.arrow")
        with pa.ipc.new_file(files[-1], table.schema) as writer:
            writer.write_table(table)
        rows += table.num_rows
    if not files:
        raise UserError(f"{source.shown} has no rows.")
    for name, column in texts.items():
        if pa.types.is_string(types[name]) and not pa.types.is_null(column.type):
            types[name] = column.type
    schema = pa.schema(list(types.items()))
    columns_of(schema, source.shown)
    return Reading(schema, _replay(files, schema))


def _plain(table: Any) -> Any:
    """Dictionaries decoded; large and view strings as plain ones."""
    fields = [pa.field(field.name, plain_type(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields)) if fields != list(table.schema) else table


def plain_type(arrow: Any) -> Any:
    if pa.types.is_dictionary(arrow):
        return plain_type(arrow.value_type)
    text = pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow)
    return pa.string() if text else arrow


def _wider(source: Input, name: str, a: Any, b: Any, row: int) -> Any:
    """The type that holds both; integers beside floats or decimals become floats."""
    if pa.types.is_null(a) or a == b:
        return b
    numbers = [pa.types.is_integer(t) or pa.types.is_floating(t) for t in (a, b)]
    decimals = [pa.types.is_decimal(t) for t in (a, b)]
    if (
        all(n or d for n, d in zip(numbers, decimals, strict=True))
        and any(numbers)
        and any(decimals)
    ):
        return pa.float64()
    try:
        merged = pa.unify_schemas(
            [pa.schema({name: a}), pa.schema({name: b})], promote_options="permissive"
        )
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        raise UserError(
            f"{source.shown}: the column {name!r} is {a} up to row {row} and {b} after it. Give "
            "it one type."
        ) from None
    merged_type = merged.field(name).type
    return pa.float64() if pa.types.is_floating(merged_type) else merged_type


def _replay(files: list[Path], schema: Any) -> Iterator[Any]:
    """Batches from the temporary files, each removed once it is read."""
    for file in files:
        with pa.memory_map(str(file)) as mapped:
            for batch in _batches(pa.ipc.open_file(mapped)):
                yield _as_schema(batch, schema)
        file.unlink()


def _batches(reader: Any) -> Iterator[Any]:
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def _as_schema(batch: Any, schema: Any) -> Any:
    arrays = []
    for field in schema:
        if field.name in batch.schema.names:
            arrays.append(batch[field.name].cast(field.type, safe=not _to_float(field.type)))
        else:
            arrays.append(pa.nulls(batch.num_rows, field.type))
    return pa.record_batch(arrays, schema=schema)


def _to_float(arrow: Any) -> bool:
    """Integers beyond 2^53 are rounded, as everywhere; the note about them says so."""
    return bool(pa.types.is_floating(arrow))

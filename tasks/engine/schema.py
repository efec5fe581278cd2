"""Columns and how those of several files become one schema: the rules of what fits together."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pyarrow import types

from tasks.engine.dataset import Column, Kind
from tasks.engine.errors import UserError, listing

EXACT = 2**53
INDEX = re.compile(r"__index_level_\d+__")
_NUMBERS = ("integer", "float", "decimal")
_TIMES = ("date", "timestamp")
_WORDS: dict[str, str] = {
    "integer": "numbers",
    "float": "numbers",
    "decimal": "numbers",
    "boolean": "booleans",
    "date": "dates",
    "timestamp": "timestamps",
    "duration": "durations",
    "string": "text",
}


class Conflict(UserError):
    """Two files give one column types that don't fit: which column, and the files' numbers."""

    def __init__(self, message: str, column: str, first: int, second: int) -> None:
        super().__init__(message)
        self.column = column
        self.first = first
        self.second = second

    def __reduce__(self) -> Any:
        return Conflict, (str(self), self.column, self.first, self.second)


def kind_of(arrow: Any) -> Kind:
    """The kind of an Arrow type; an all-missing column (`null`) counts as float."""
    if types.is_dictionary(arrow):
        return kind_of(arrow.value_type)
    tests: list[tuple[Any, Kind]] = [
        (types.is_integer, "integer"),
        (types.is_floating, "float"),
        (types.is_null, "float"),
        (types.is_boolean, "boolean"),
        (types.is_decimal, "decimal"),
        (types.is_date, "date"),
        (types.is_timestamp, "timestamp"),
        (types.is_duration, "duration"),
        (types.is_string, "string"),
        (types.is_large_string, "string"),
        (types.is_string_view, "string"),
    ]
    return next((kind for test, kind in tests if test(arrow)), "other")


def columns_of(schema: Any, shown: str) -> tuple[Column, ...]:
    """The columns of an Arrow schema. Raises UserError for names that are empty or repeated."""
    check_names(list(schema.names), shown)
    return tuple(
        Column(name=field.name, kind=kind_of(field.type), arrow=str(field.type)) for field in schema
    )


def check_names(names: Sequence[str], shown: str) -> None:
    """Raises UserError for names that are empty or repeated, or where there are none."""
    if not names:
        raise UserError(f"{shown} has no columns.")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(
                f"{shown}: column {number} of {len(names)} has no name. Name every column (pandas "
                "writes its index so: to_csv(…, index=False) leaves it out)."
            )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        places = [str(number) for number, name in enumerate(names, 1) if name == repeated[0]]
        raise UserError(
            f"{shown}: {len(places)} columns are named {repeated[0]!r} (columns "
            f"{' and '.join(places) if len(places) == 2 else ', '.join(places)}). Give each a "
            "name of its own."
        )


def _without_indices(
    files: Sequence[tuple[str, tuple[Column, ...]]],
) -> tuple[Sequence[tuple[str, tuple[Column, ...]]], list[str]]:
    """The files without what pandas called the levels of an index, and those columns' names."""
    names = {column.name for _, columns in files for column in columns}
    found = {name for name in names if INDEX.fullmatch(name)}
    kept = [(shown, tuple(c for c in columns if c.name not in found)) for shown, columns in files]
    if not found or not all(columns for _, columns in kept):
        return files, []
    return kept, sorted(found)


def unify(
    files: Sequence[tuple[str, tuple[Column, ...]]],
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """One schema for files given as (shown, columns), and notes about what had to give.

    A column that most files have must be in all; one that few have is left out with a note, as is
    an index without a name that pandas wrote. The answer depends on the files' order alone.

    Raises:
        UserError: a column is missing in a file.
        Conflict: a column's types don't fit together.
    """
    files, indices = _without_indices(files)
    counts = Counter(column.name for _, columns in files for column in columns)
    first = [column.name for column in files[0][1]]
    wanted = [
        name
        for name, count in counts.items()
        if 2 * count > len(files) or (2 * count == len(files) and name in first)
    ]
    by_name = [{column.name: column for column in columns} for _, columns in files]
    _check_missing(files, by_name, wanted, counts)
    notes = [
        f"The column {name!r} is an index without a name that pandas wrote, and is left out "
        "(to_parquet(…, index=False) does not write it)."
        for name in indices
    ]
    notes += [
        f"The column {name!r} is only in {_some(files, by_name, name)} and is left out."
        for name in counts
        if name not in wanted
    ]
    columns = []
    for name in wanted:
        merged, note = _merge(
            name, [(shown, by[name]) for (shown, _), by in zip(files, by_name, strict=True)]
        )
        columns.append(merged)
        notes += [note] if note else []
    return tuple(columns), tuple(notes)


def _check_missing(
    files: Sequence[tuple[str, tuple[Column, ...]]],
    by_name: list[dict[str, Column]],
    wanted: list[str],
    counts: Counter[str],
) -> None:
    for (shown, columns), known in zip(files, by_name, strict=True):
        for name in wanted:
            if name not in known:
                raise UserError(
                    f"{shown} has no column {name!r}, which {counts[name]} of the "
                    f"{len(files)} files have. Its columns are: "
                    f"{listing(column.name for column in columns)}. Write the file again with "
                    "the column, or leave the file out."
                )


def _some(
    files: Sequence[tuple[str, tuple[Column, ...]]], by_name: list[dict[str, Column]], name: str
) -> str:
    return listing(
        (shown for (shown, _), known in zip(files, by_name, strict=True) if name in known), 3
    )


def _merge(name: str, versions: list[tuple[str, Column]]) -> tuple[Column, str]:
    """The column that holds all of `versions` (shown, column), and a note or ""."""
    known = [(i, shown, c) for i, (shown, c) in enumerate(versions) if c.arrow != "null"]
    if not known:
        return versions[0][1], ""
    origin, first_shown, first = known[0]
    merged, note = first, ""
    for number, shown, column in known[1:]:
        if column.arrow == merged.arrow:
            continue
        wider = _wider(merged, column)
        if wider is None:
            raise Conflict(
                f"The column {name!r} holds {_words(first)} in {first_shown} and "
                f"{_words(column)} in {shown}. Write one of the files again, or leave the column "
                "out of both.",
                name,
                origin,
                number,
            )
        if {merged.kind, column.kind} == {"integer", "float"} and not note:
            note = (
                f"The column {name!r} holds {merged.kind}s in {first_shown} and {column.kind}s in "
                f"{shown}: it is read as floats."
            )
        merged = wider
    return merged, note


def _wider(a: Column, b: Column) -> Column | None:
    if a.kind == b.kind:
        if a.kind == "timestamp" and zoned(a) != zoned(b):
            return None
        if a.kind == "other":
            return None
        by_kind = {"integer": "int64", "float": "double", "string": "string"}
        return a.model_copy(update={"arrow": by_kind.get(a.kind, max(a.arrow, b.arrow))})
    if a.kind in _NUMBERS and b.kind in _NUMBERS:
        return a.model_copy(update={"kind": "float", "arrow": "double"})
    if a.kind in _TIMES and b.kind in _TIMES and not (zoned(a) or zoned(b)):
        return a if a.kind == "timestamp" else b
    return None


def zoned(column: Column) -> bool:
    return "tz=" in column.arrow


def _words(column: Column) -> str:
    if column.kind == "timestamp":
        return f"timestamps {'with' if zoned(column) else 'without'} a time zone"
    return _WORDS.get(column.kind, column.arrow)


def rounded(shown: str, column: str) -> str:
    """The note about integers that a 64-bit float can't hold."""
    return (
        f"{shown}: the column {column!r} holds integers beyond 2^53, which are rounded to the "
        "nearest 64-bit float."
    )

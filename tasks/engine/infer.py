"""What a column of texts holds, judged over the whole of it: numbers, booleans, times or text."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from tasks.engine.config import DataConfig
from tasks.engine.dataset import Frozen
from tasks.engine.errors import UserError

BOOLEANS = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_MARKS = ("-", "--", "---", ".", "?", "??", "*")
_WORDS = ("na", "n/a", "#n/a", "n.a.", "nan", "nil", "null", "(null)", "none", "missing", "unknown")
PLACEHOLDERS = frozenset((*_MARKS, *_WORDS))
_NUMBER = (
    r"^[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t]*$|^[ \t]*[+-]?(?i:nan|inf|infinity)[ \t]*$"
)
_LONG = r"^[ \t]*[+-]?\d{19,}[ \t]*$"
_TIME = r"^\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?$"
_ZONED = r"^\d{4}-\d\d-\d\d[ T]\d\d(:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d(:?\d\d)?)$"

# The types that a column may have, in the order of trying; each is left for a later one of its line
_LINES: tuple[tuple[str, ...], ...] = (
    ("int64", "double"),
    ("bool",),
    ("date32", "naive", "naive_ns"),
    ("zoned", "zoned_ns"),
)
_TYPES: dict[str, Any] = {
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "date32": pa.date32(),
    "naive": pa.timestamp("us"),
    "naive_ns": pa.timestamp("ns"),
    "zoned": pa.timestamp("us", "UTC"),
    "zoned_ns": pa.timestamp("ns", "UTC"),
}


Mostly = Literal["text", "numbers", "times", "zoned times", "long integers"]


class Evidence(Frozen):
    """Why a column is read as text: the first value, with its line, that is nothing else.

    `mostly` tells what the column's other values are; where that is not text, the column is in
    doubt. Of `long integers` the first does not fit 64 bits.
    """

    column: str
    mostly: Mostly
    line: int
    text: str

    @property
    def placeholder(self) -> bool:
        return self.text.strip().casefold() in PLACEHOLDERS


def check_evidence(shown: str, evidence: Iterable[Evidence], config: DataConfig) -> None:
    """Raises UserError for a text column in use that mostly holds something else."""
    declared = {*config.categories, *config.exclude}
    used = None
    if config.features is not None:
        used = {*config.features, config.target, config.weight}
    for found in evidence:
        name = found.column
        if found.mostly == "text" or name in declared or (used is not None and name not in used):
            continue
        place = f"{shown}, line {found.line}:"
        way_out = "Name the column in data.categories if it is meant as text, or in data.exclude."
        if config.target is None and used is not None:  # to be scored: its columns are a model's
            way_out = "It was a column of numbers or times in training."
        text = found.text if len(found.text) <= 60 else found.text[:59] + "…"
        if found.mostly == "long integers":
            raise UserError(
                f"{place} the integer {text} in the column {name!r} does not fit 64 bits. {way_out}"
            )
        if found.placeholder or not text.strip():
            raise UserError(
                f"{place} {text!r} in the column {name!r}, whose other values are {found.mostly}. "
                f'If it means a missing value, set data.missing_values=["{text}"]. {way_out}'
            )
        raise UserError(
            f"{place} {text!r} in the column {name!r}, whose other values are mostly "
            f"{found.mostly}. Correct it, or set data.missing_values if it means a missing value. "
            f"{way_out}"
        )


@dataclass
class TextColumn:
    """Follows one column over its batches. `type` is the narrowest Arrow type that holds it all.

    Without `numbers` only times are looked for, and one that is not `guessed` stays text.
    """

    name: str
    numbers: bool = True
    guessed: bool = True
    _state: str = "null"
    _rows: int = 0
    _counts: dict[str, int] = field(default_factory=dict)
    _first: dict[str, tuple[int, str]] = field(default_factory=dict)
    _others: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not self.guessed:
            self.numbers, self._state = False, "text"

    @property
    def type(self) -> Any:
        if self._state == "null":
            return pa.null()
        return _TYPES.get(self._state, pa.string())

    def see(self, texts: Any) -> None:
        """Takes the next batch: an Arrow array of strings."""
        if texts.null_count < len(texts):
            if self._state != "text":
                self._state = self._next(texts)
            if self._state == "text":
                if self.numbers:
                    self._count(texts)
            else:
                self._tally(self._state, texts)
        self._rows += len(texts)

    def _next(self, texts: Any) -> str:
        for line in _LINES:
            if line[0] in ("int64", "bool") and not self.numbers:
                continue
            if self._state in ("null", *line):
                start = line.index(self._state) if self._state in line else 0
                for state in line[start:]:
                    if castable(texts, state):
                        return state
        return "text"

    def _tally(self, state: str, texts: Any) -> None:
        what = {"int64": "numbers", "double": "numbers", "zoned": "zoned times"}.get(state)
        what = what or {"zoned_ns": "zoned times", "bool": "text"}.get(state, "times")
        if state == "bool":
            self._others.add("true")
        self._counts[what] = self._counts.get(what, 0) + len(texts) - texts.null_count
        if what not in self._first:
            row = pc.index(pc.is_valid(texts), True).as_py()
            self._first[what] = (self._rows + row, texts[row].as_py())

    def _count(self, texts: Any) -> None:
        """Sorts the values of a text column: what are they, and where does each sort begin?"""
        encoded = texts.dictionary_encode()
        values = encoded.dictionary
        kinds = []
        matches = [_matches(values, p) for p in (_NUMBER, _LONG, _TIME, _ZONED)]
        for value, number, long, time, zoned in zip(values.to_pylist(), *matches, strict=True):
            is_long = long and not fits(value)
            kind = "long integers" if is_long else "numbers" if number else "text"
            if (time or zoned) and _is_time(value):
                kind = "times" if time else "zoned times"
            if kind == "text" and len(self._others) < 50:
                self._others.add(value.strip().casefold())
            kinds.append(kind)
        for kind in dict.fromkeys(kinds):
            member = pa.array([known == kind for known in kinds]).take(encoded.indices)
            self._counts[kind] = self._counts.get(kind, 0) + (pc.sum(member).as_py() or 0)
            if kind not in self._first:
                row = pc.index(member, True).as_py()
                self._first[kind] = (self._rows + row, texts[row].as_py())

    def evidence(self) -> tuple[Mostly, int, str] | None:
        """Of a text column: what it mostly holds, and the row and text of the first odd value."""
        if self._state != "text" or not self.numbers:
            return None
        counts = dict(self._counts)
        if "long integers" in counts and not counts.get("text"):
            return "long integers", *self._first["long integers"]
        counts["numbers"] = counts.get("numbers", 0) + counts.pop("long integers", 0)
        kinds: tuple[Mostly, ...] = ("numbers", "times", "zoned times")
        for mostly in kinds:
            share = counts.get(mostly, 0) / sum(counts.values())
            same = (mostly, "long integers") if mostly == "numbers" else (mostly,)
            odd = [place for kind, place in self._first.items() if kind not in same]
            placeholders = bool(self._others) and self._others <= PLACEHOLDERS
            if odd and share > 0 and (share >= 0.5 or placeholders):
                return mostly, *min(odd)
        return "text", *self._first.get("text", min(self._first.values()))


def _is_time(text: str) -> bool:
    """Whether a text of the form of a time is one: 30 February is not."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _matches(values: Any, pattern: str) -> list[bool]:
    return list(pc.match_substring_regex(values, pattern).to_pylist())


def castable(texts: Any, state: str) -> bool:
    """Whether every text that is there reads as the type `state`; numbers may have spaces."""
    if state == "bool":
        known = pa.array([*BOOLEANS[0], *BOOLEANS[1]])
        return bool(pc.all(pc.is_in(texts.drop_null(), known)).as_py())
    if state == "int64" and _hexadecimal(texts):
        return False
    # Arrow words an error for each value that fails: a few values tell first
    if not _casts(texts.drop_null()[:20], state) or not _casts(texts, state):
        return False
    return state != "double" or not _overflows(texts)


def _casts(texts: Any, state: str) -> bool:
    try:
        texts.cast(_TYPES[state])
        return True
    except pa.ArrowInvalid:
        trimmed = pc.utf8_trim(texts, characters=" \t")
        if state not in ("int64", "double") or trimmed.equals(texts):
            return False
    try:
        trimmed.cast(_TYPES[state])
        return True
    except pa.ArrowInvalid:
        return False


def _overflows(texts: Any) -> bool:
    """Whether an integer among them has so many digits that only a float would hold it."""
    if (pc.max(pc.binary_length(texts)).as_py() or 0) < 19:
        return False
    long = texts.filter(pc.match_substring_regex(texts, _LONG)).drop_null()
    return any(not fits(text) for text in long.to_pylist())


def fits(text: str) -> bool:
    """Whether the integer fits 64 bits. Longer texts than Python converts don't."""
    return len(text) < 100 and -(2**63) <= int(text) < 2**63


def _hexadecimal(texts: Any) -> bool:
    return any(pc.any(pc.match_substring(texts, mark)).as_py() for mark in ("x", "X"))

"""A first look at a table, written down as a commented configuration that trains as it stands."""

import json
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from tasks.engine.config import Config
from tasks.engine.dataset import Column, Dataset, RowGroup
from tasks.engine.dates import DATED, escaped
from tasks.engine.errors import UserError, unknown_column
from tasks.engine.frames import open_input
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.settings import load_config

LOOKED_AT = 5_000
NUMERIC = ("integer", "float", "decimal")
TIMES = ("date", "timestamp")
TARGET_NAMES = ("target", "label", "price", "value", "amount", "cost", "sales", "score", "y")
WEIGHT_NAMES = ("weight", "weights", "sample_weight", "sample_weights")
FEW_VALUES = 12
COLUMNS_SHOWN = 200
EXAMPLES: dict[str, Any] = {
    "data.query": "SELECT * FROM houses WHERE sold > 0",
    "data.table": "houses",
    "data.format": "csv",
    "data.separator": ";",
    "split.valid_from": date(2025, 1, 1),
    "split.test_from": date(2025, 2, 1),
    "boost.early_stopping_rounds": 20,
    "boost.column_chunk": 10,
    "cluster.threads": 1,
    "cluster.memory_limit": "4GiB",
    "cluster.address": "tls://10.0.0.1:8786",
    "cluster.tls_ca": "/etc/dask/ca.pem",
    "cluster.tls_cert": "/etc/dask/cert.pem",
    "cluster.tls_key": "/etc/dask/key.pem",
    "cluster.tracker_host": "10.0.0.2",
    "track.model": "houses",
    "track.run_name": "first try",
}


@dataclass(frozen=True)
class Look:
    """A column in the rows looked at: `missing` is a share, `examples` are the first values."""

    column: Column
    rows: int
    missing: float
    distinct: int
    counts_up: bool
    examples: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.column.name

    @property
    def row_name(self) -> str | None:
        """Why the column only names the row, or None."""
        words = re.findall(r"[a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", self.name).lower())
        if self.rows < 20 or self.column.kind not in ("integer", "string"):
            return None
        if self.column.kind == "integer" and self.counts_up:
            return "it counts the rows"
        if self.distinct == self.rows and self.missing == 0:
            if self.column.kind == "string":
                return "every row has a value of its own"
            if words and words[-1] in ("id", "key", "index", "uuid", "number", "nr", "no"):
                return "every row has a value of its own"
        return None


@dataclass(frozen=True)
class Written:
    """What `write_config` found: the number of columns, the target, what is worth knowing."""

    columns: int
    target: str
    notes: tuple[str, ...]


def write_config(
    file: str,
    target: str | None = None,
    out: str = "boostline.toml",
    settings: Iterable[str] = (),
    home: Home | None = None,
) -> Written:
    """Looks at some thousand rows of `file` and writes `out`; `settings` as for `--set`.

    Raises:
        UserError: `out` exists, the table can't be read or has no column to predict.
    """
    _refuse_existing(out)
    settings = tuple(settings)
    # The target is only known once the table has been read; "-" stands in for it till then.
    data = load_config(None, settings, file, target or "-").data
    dataset = ingest(data.model_copy(update={"target": target}), home or Home.at())
    looks = list(_looks(dataset))
    chosen, reason = _target(looks, target)
    first = load_config(None, settings, file, chosen)
    excluded = _excluded(looks, first)
    config = first.model_copy(
        update={
            "data": first.data.model_copy(
                update={"exclude": (*first.data.exclude, *excluded)},
            )
        }
    )
    _write_new(out, _text(config, dataset, looks, reason, excluded))
    notes = [f"{name} is excluded: {why}." for name, why in excluded.items()]
    return Written(len(looks), chosen, (f"{chosen} is the target: {reason}.", *notes))


def _refuse_existing(out: str) -> None:
    if os.path.lexists(out):
        raise UserError(f"{out!r} exists and is never overwritten. Name another file with --out.")
    if not Path(out).absolute().parent.is_dir():
        raise UserError(
            f"There is no folder {str(Path(out).absolute().parent)!r} to write {out!r}."
        )


def _write_new(out: str, text: str) -> None:
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _refuse_existing(out)
    except OSError as error:
        raise UserError(f"{out!r} can't be written: {error.strerror}.") from None


# --- looking -------------------------------------------------------------------------------------


def _looks(dataset: Dataset) -> Iterator[Look]:
    names = [column.name for column in dataset.columns if column.kind != "other"]
    table = _rows(dataset.row_groups(), names)
    for column in dataset.columns:
        if column.kind == "other":
            yield Look(column, 0, 0.0, 0, False, ())
            continue
        values = table[column.name]
        present = values.drop_null()
        distinct = present.unique()
        yield Look(
            column,
            len(values),
            values.null_count / max(len(values), 1),
            len(distinct),
            _counts_up(present, column),
            tuple(_shown(value) for value in distinct[:3].to_pylist()),
        )


def _rows(groups: list[RowGroup], names: list[str]) -> pa.Table:
    """Up to LOOKED_AT rows from row groups all over the table, a share from each."""
    chosen = groups if len(groups) <= 10 else [groups[i * len(groups) // 10] for i in range(10)]
    share = -(-LOOKED_AT // max(len(chosen), 1))
    batches = []
    for group in chosen:
        with open_input(group.uri) as source:
            reader = pq.ParquetFile(source)
            schema = pa.schema([reader.schema_arrow.field(name) for name in names])
            found = reader.iter_batches(batch_size=share, row_groups=[group.index], columns=names)
            # Copied: the batch may point into the file that is closed here.
            batches.append(pa.Table.from_batches([next(found)]).select(names).cast(schema))
    return pa.concat_tables(batches, promote_options="permissive")


def _counts_up(values: pa.ChunkedArray, column: Column) -> bool:
    """0, 1, 2, …: each value one more than the one before, within every part of the table."""
    if column.kind != "integer" or len(values) < 2:
        return False
    for chunk in values.chunks:
        steps = pc.subtract(chunk[1:].cast("float64"), chunk[:-1].cast("float64"))
        if len(steps) and not pc.all(pc.equal(steps, 1.0)).as_py():
            return False
    return True


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = _printable(text)
    return text if len(text) <= 24 else f"{text[:23]}…"


def _target(looks: list[Look], named: str | None) -> tuple[str, str]:
    """The column to predict, and why this one."""
    if named is not None:
        if named not in [look.name for look in looks]:
            raise unknown_column(named, "target", "--target", [look.name for look in looks])
        return named, "named with --target"
    able = [
        look
        for look in looks
        if look.column.kind in NUMERIC and look.distinct > 1 and not look.row_name
    ]
    if not able:
        raise UserError(
            "No column could be a target: a target is numeric, and has more than one value. "
            "Name one with --target."
        )
    names = {look.name.lower() for look in looks}
    for wanted in TARGET_NAMES:
        if wanted == "y" and "x" in names:
            continue  # the second of some coordinates
        for look in reversed(able):
            if re.split(r"[^a-z0-9]+", look.name.lower())[-1] == wanted:
                return look.name, f"guessed by its name, as --target was not given ({wanted!r})"
    return able[-1].name, "guessed as the last numeric column, as --target was not given"


def _excluded(looks: list[Look], config: Config) -> dict[str, str]:
    """Columns that would do no good as features, with the reason."""
    used = {config.target, config.data.weight, config.split.column, *config.data.exclude}
    found: dict[str, str] = {}
    for look in looks:
        if look.name in used or config.data.features is not None:
            continue
        if look.column.kind == "other":
            found[look.name] = f"{look.column.arrow} can't be a feature"
        elif look.row_name:
            found[look.name] = look.row_name
    return found


# --- writing -------------------------------------------------------------------------------------


def _text(
    config: Config, dataset: Dataset, looks: list[Look], reason: str, excluded: dict[str, str]
) -> str:
    lines = [
        "# A configuration of Boostline. What is commented out is the default.",
        f"# {dataset.rows:,} rows, {len(looks)} columns; seen in {looks[0].rows:,} of the rows:",
        "#",
        *_columns_table(looks),
        "",
    ]
    comments = _suggestions(config, looks, reason, excluded)
    for section, field in Config.model_fields.items():
        values: BaseModel = getattr(config, section)
        lines += [f"[{section}]", f"# {str(type(values).__doc__).splitlines()[0]}"]
        for name in type(values).model_fields:
            lines += ["", *_setting(section, name, values, field.default, comments)]
        lines.append("")
    return "\n".join(lines)


def _columns_table(looks: list[Look]) -> list[str]:
    rows = [("column", "type", "missing", "examples")]
    for look in looks[:COLUMNS_SHOWN]:
        missing = f"{100 * look.missing:.1f} %" if look.missing else ""
        rows.append((_printable(look.name), look.column.arrow, missing, ", ".join(look.examples)))
    if len(looks) > COLUMNS_SHOWN:
        rows.append((f"and {len(looks) - COLUMNS_SHOWN} more", "", "", ""))
    name, kind, share = (min(30, max(len(row[i]) for row in rows)) for i in range(3))
    return [
        f"#   {row[0]:<{name}}  {row[1]:<{kind}}  {row[2]:>{share}}  {row[3]}".rstrip()
        for row in rows
    ]


def _printable(text: str) -> str:
    """One line that a TOML comment can hold: no control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _suggestions(
    config: Config, looks: list[Look], reason: str, excluded: dict[str, str]
) -> dict[str, list[str]]:
    """Comments by dotted setting: why a value was chosen, and what else may be worth a thought."""
    found = {"data.target": _wrapped(f"Here: {reason}.")}
    if excluded:
        found["data.exclude"] = [
            line
            for name, why in excluded.items()
            for line in _wrapped(f"{_printable(name)}: {why}.")
        ]
    features = [look for look in looks if look.name not in {config.target, *excluded}]
    few = [
        look.name
        for look in features
        if look.column.kind == "integer" and 2 < look.distinct <= FEW_VALUES < look.rows // 4
    ]
    if few:
        names = ", ".join(map(_printable, few))
        found["data.categories"] = [
            *_wrapped(f"Few whole numbers in {names}. If they are codes and not quantities:"),
            f"#   categories = {_toml(few)}",
        ]
    for look in features:
        if look.name.lower() in WEIGHT_NAMES and look.column.kind in NUMERIC:
            found["data.weight"] = [
                f"# {_printable(look.name)} may be one; it is a feature otherwise:",
                f"#   weight = {_toml(look.name)}",
            ]
        if look.column.kind in TIMES and "split.kind" not in found:
            found["split.kind"] = [
                *_wrapped(
                    "To predict the future from the past, split by time (set test_from to "
                    "keep rows on their side as data arrives):"
                ),
                '#   kind = "time"',
                f"#   column = {_toml(look.name)}",
            ]
    return found


def _setting(
    section: str, name: str, values: BaseModel, defaults: Any, comments: dict[str, list[str]]
) -> list[str]:
    """A setting with its help: active where it differs from the default, else commented out."""
    field = type(values).model_fields[name]
    lines = _wrapped(field.description or "") + comments.get(f"{section}.{name}", [])
    value, default = getattr(values, name), getattr(defaults, name)
    if section == "data" and name in DATED and value is not None:
        value = escaped(value)
    shown = _toml(value)
    if value != default or f"{section}.{name}" == "data.source":
        return [*lines, f"{name} = {shown}"]
    if value is None:
        example = _toml(EXAMPLES.get(f"{section}.{name}"))
        return [
            *lines,
            f"# {name} is not set" + (f"; for example: {name} = {example}" * bool(example)),
        ]
    return [*lines, f"# {name} = {shown}"]


def _wrapped(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 94, break_long_words=False)]


def _toml(value: Any) -> str:
    """The value as TOML; empty for None, which TOML doesn't have."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is, and the slash.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return str(value)

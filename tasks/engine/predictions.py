"""Scoring row groups into Parquet parts: the same pass for evaluation and for new tables."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
from fsspec.core import url_to_fs
from pydantic import Field

from tasks.engine.dataset import Batch, Frozen, RowGroup
from tasks.engine.fold import fold
from tasks.engine.frames import Device, on_host, read_arrow, read_frame
from tasks.engine.home import Home, digest_of, write_atomically
from tasks.engine.parts import part_group, present, write_part
from tasks.engine.rows import Plan, category_text, load, scoring
from tasks.engine.scoring import MANIFEST_FILE, Column, Encoder, Scorer, canonical_text


class Part(Frozen):
    """A part of predictions: where it is and how many rows it holds."""

    uri: str
    rows: int


class Predictions(Frozen):
    """Parts in the order of the rows that they score; `unseen` counts unknown categories."""

    parts: tuple[Part, ...]
    unseen: dict[str, int] = Field(default_factory=dict)

    def row_groups(self) -> list[RowGroup]:
        return [part_group(part.uri, part.rows) for part in self.parts if part.rows]


@dataclass(frozen=True)
class ScorerRef:
    """A stored scorer (`Scorer.save`) that every worker can reach, and its manifest's digest."""

    uri: str
    manifest_sha256: str
    threads: int = 1
    device: Device = "cpu"

    def load(self) -> Scorer:
        """Raises TamperedModelError where the files are not those that were saved."""
        return _load(self)


@lru_cache(maxsize=2)
def _load(reference: ScorerRef) -> Scorer:
    filesystem, path = url_to_fs(reference.uri)
    options: dict[str, Any] = {
        "manifest_sha256": reference.manifest_sha256,
        "threads": reference.threads,
        "device": reference.device,
    }
    if "://" not in reference.uri:
        return Scorer.load(Path(path), **options)
    with TemporaryDirectory() as folder:
        filesystem.get(f"{path}/", folder, recursive=True)
        return Scorer.load(Path(folder), **options)


def store_scorer(scorer: Scorer, home: Home) -> ScorerRef:
    """Puts a scorer under `models` of `home`, where every worker can load it.

    Its folder has the manifest's digest as its name: two models may share a booster and differ in
    the names of columns, in categories or in the mean.
    """
    with TemporaryDirectory() as scratch:
        digests = scorer.save(scratch)
        uri = home.path("models", digests[MANIFEST_FILE])
        filesystem, path = url_to_fs(uri)
        filesystem.makedirs(path, exist_ok=True)
        for file in digests:
            write_atomically(f"{uri}/{file}", Path(scratch, file).read_bytes())
    return ScorerRef(uri, digests[MANIFEST_FILE])


def texts_of(encoder: Encoder) -> tuple[str, ...]:
    """Category columns that held texts in training: where a file leaves the types open they have to
    be read as texts again. Of a model that does not say so "01" tells: no number is written so.
    """
    return tuple(
        column.name
        for column in encoder.columns
        if column.categories is not None and _is_of_texts(column)
    )


def _is_of_texts(column: Column) -> bool:
    known = column.categories or ()
    if column.of_texts is not None:
        # integers without a sign, of 64 bits: texts where a file leaves the types open
        return column.of_texts or (
            all(category.isdecimal() for category in known) and any(map(_is_long_integer, known))
        )
    return not all(map(_is_no_text, known))


def _is_long_integer(category: str) -> bool:
    digits = category.removeprefix("-")
    return digits.isdecimal() and not -(1 << 63) <= int(category) < 1 << 63


def _is_no_text(category: str) -> bool:
    """Whether a number, a boolean or a time has this canonical text."""
    if category in ("true", "false"):
        return True
    for read in (int, float, Decimal, pd.Timestamp) if category[-1:].isdigit() else ():
        with suppress(ValueError, ArithmeticError):
            value = read(category)
            if _is_long_integer(category):
                return False
            if canonical_text(value) == category:
                return True
    return False


@dataclass(frozen=True)
class _Evaluated:
    """Scores the usable rows of a batch beside their actual values, into one part."""

    plan: Plan
    scorer: ScorerRef
    folder: str

    def __call__(self, batch: Batch) -> Predictions:
        rows = load(batch, self.plan, self.scorer.device)
        with scoring(batch, rows.places):
            predicted = self.scorer.load().predict(rows.frame)
        scored = {
            "actual": on_host(rows.target),
            "predicted": on_host(predicted),
            "side": on_host(rows.side),
            "position": on_host(rows.position),
            **{
                f"by:{name}": pd.Categorical(category_text(rows.frame[name]))
                for name in self.plan.by
            },
        }
        return _written(self.folder, batch, pd.DataFrame(scored))


@dataclass(frozen=True)
class _Scored:
    """Scores every row of a batch of a new table, in order, beside the columns to keep."""

    columns: tuple[str, ...]
    keep: tuple[str, ...]
    name: str
    scorer: ScorerRef
    folder: str

    def __call__(self, batch: Batch) -> Predictions:
        raw = read_frame(batch, self.columns, self.scorer.device)
        scorer = self.scorer.load()
        with scoring(batch):
            predicted = scorer.predict(raw)
        # kept columns stay Arrow: what pandas would make of a date is not what was read
        made = pa.table({self.name: pa.array(on_host(predicted), type=pa.float64())})
        if self.keep:  # a table without columns has no rows
            made = read_arrow(batch, self.keep).append_column(self.name, made[self.name])
        return _written(self.folder, batch, made, scorer.encoder.unseen_counts(raw))


def _written(
    folder: str,
    batch: Batch,
    rows: pd.DataFrame | pa.Table,
    unseen: dict[str, int] | None = None,
) -> Predictions:
    uri = f"{folder}/{digest_of(batch[0].path)}-{batch[0].index:06d}.parquet"
    write_part(uri, rows)
    return Predictions(parts=(Part(uri=uri, rows=len(rows)),), unseen=unseen or {})


def _merge(left: Predictions, right: Predictions) -> Predictions:
    names = dict.fromkeys([*left.unseen, *right.unseen])
    return Predictions(
        parts=left.parts + right.parts,
        unseen={name: left.unseen.get(name, 0) + right.unseen.get(name, 0) for name in names},
    )


Told = Callable[[int, int], None]


def predict_usable(
    client: Any,
    row_groups: Sequence[RowGroup],
    plan: Plan,
    scorer: ScorerRef,
    home: Home,
    key: str,
    on_progress: Told = lambda done, total: None,
) -> Predictions:
    """Predictions for the usable rows of a training table, under `predictions/<key>` of `home`.

    The parts' columns: `actual`, `predicted` float64, `side` int8, `position` uint64, and one
    category column `by:<name>` for each of the plan's `by`. Found again where they are complete.
    """
    known = home.load(Predictions, "predictions", key, "parts.json")
    if known is not None and len(present(part.uri for part in known.parts)) == len(known.parts):
        return known
    folder = home.path("predictions", key)
    evaluated = _Evaluated(plan, scorer, folder)
    width = len(plan.columns)
    found = fold(client, row_groups, evaluated, _merge, on_progress, width, scorer.device)
    home.save(found, "predictions", key, "parts.json")
    return found


def predict_table(
    client: Any,
    row_groups: Sequence[RowGroup],
    columns: Sequence[str],
    keep: Sequence[str],
    scorer: ScorerRef,
    folder: str,
    on_progress: Told = lambda done, total: None,
) -> Predictions:
    """Predictions for every row of a table, in its order, as parts in `folder`.

    The parts hold the columns `keep` as they are in the table, then `prediction` float64.
    """
    name = "prediction"
    while name in keep:
        name += "_"
    scoring = _Scored(tuple(columns), tuple(keep), name, scorer, folder)
    width = len(columns) + len(keep)
    return fold(client, row_groups, scoring, _merge, on_progress, width, scorer.device)

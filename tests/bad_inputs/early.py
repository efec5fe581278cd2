"""A small table all the way in one process: what is said of it, and what is learnt from it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb

from tasks.engine.boost import boost_segment
from tasks.engine.booster import finish
from tasks.engine.boosting import _Batches, _Sample, spec_of
from tasks.engine.config import Config
from tasks.engine.dataset import Dataset
from tasks.engine.early import check_early
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.planning import plan_of
from tasks.engine.profile import Profile, encoder_from, take_profile
from tasks.engine.rows import Plan, load
from tasks.engine.scoring import Scorer
from tasks.engine.settings import parse

ROWS = 60


def columns(**more: Any) -> dict[str, Any]:
    """60 rows that can be learnt: a number, a category and a target made of both."""
    a = np.round(np.sin(np.arange(ROWS) * 12.9898) * 4, 3)
    c = np.where(np.arange(ROWS) % 3 == 0, "x", "y")
    return {"a": a.tolist(), "c": c.tolist(), "y": (a * 2 + (c == "x") * 3).tolist(), **more}


def changed(name: str, row: int, value: Any) -> dict[str, Any]:
    """The same with one cell changed; `row` counts from 1, as messages do."""
    table = columns()
    table[name][row - 1] = value
    return table


def parquet(folder: Path, table: dict[str, Any], name: str = "t.parquet", **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / name, **options)
    return folder / name


def csv(folder: Path, table: dict[str, Any], **text: str) -> Path:
    """As CSV; `text` replaces the first cell of a column, as it is written."""
    lines = [",".join(table)]
    for number, row in enumerate(zip(*table.values(), strict=True)):
        cells = dict(zip(table, map(str, row), strict=True))
        lines.append(",".join({**cells, **(text if number == 0 else {})}.values()))
    folder.mkdir(exist_ok=True)
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


def configured(source: object, settings: dict[str, Any] | None = None) -> Config:
    """`settings` by their dotted names; the target is y."""
    values: dict[str, Any] = {"data": {"source": str(source), "target": "y"}}
    for key, value in (settings or {}).items():
        section, name = key.split(".")
        values.setdefault(section, {})[name] = value
    return parse(values)


def refused(source: object, home: Home, settings: dict[str, Any] | None = None) -> str:
    """The message, with the names of folders that are hashes as `#`."""
    with pytest.raises(UserError) as error:
        check_early(configured(source, settings), home)
    return re.sub(r"\b[0-9a-f]{32}\b", "#", str(error.value))


@dataclass(frozen=True)
class Seen:
    """What a table came to before training."""

    config: Config
    dataset: Dataset
    plan: Plan
    profile: Profile

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.dataset.notes, *self.profile.notes)


def seen(source: object, home: Home, settings: dict[str, Any] | None = None) -> Seen:
    config = configured(source, settings)
    check_early(config, home)
    dataset = ingest(config.data, home)
    plan = plan_of(config, dataset)
    dataset, profile = take_profile(None, dataset, plan, config, home)
    return Seen(config, dataset, plan, profile)


def trained(table: Seen) -> Scorer:
    """30 rounds in this process, on all row groups."""
    boost = table.config.boost.model_copy(update={"n_estimators": 30, "learning_rate": 0.3})
    config = table.config.model_copy(update={"boost": boost})
    spec = spec_of(config, table.plan, table.profile)
    segment = boost_segment(
        spec,
        _Batches(table.plan, table.profile.encoder)(table.dataset.row_groups()),
        _Sample(table.profile.sample, table.profile.sample_share, table.profile.encoder)(),
        None,
        group=None,
        save=lambda checkpoint: None,
        on_round=lambda round_, metrics: None,
    )
    assert segment.checkpoint is not None
    booster = xgb.Booster(model_file=bytearray(finish(segment.checkpoint.raw, 30)))
    return Scorer(encoder_from(table.profile), booster, table.profile.mean, threads=1)


def r2_of_all_rows(table: Seen, scorer: Scorer) -> float:
    """Over train, valid and test rows together."""
    rows = [load((group,), table.plan) for group in table.dataset.row_groups()]
    actual = np.concatenate([part.target for part in rows])
    predicted = np.concatenate([scorer.predict(part.frame) for part in rows])
    assert np.isfinite(predicted).all()
    return 1 - float(((actual - predicted) ** 2).sum() / ((actual - actual.mean()) ** 2).sum())

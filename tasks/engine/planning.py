"""From a configuration and a table to a plan: which column is what, and where the sides part."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.engine.config import Config
from tasks.engine.dataset import Batch, Dataset
from tasks.engine.frames import read_frame
from tasks.engine.quantiles import exact_quantiles
from tasks.engine.roles import resolve_roles
from tasks.engine.rows import Feature, Plan, feature_of
from tasks.engine.rules import parse_rule
from tasks.engine.scoring import numeric_values
from tasks.engine.split import resolve_split, shares_wanted


@dataclass(frozen=True)
class _Times:
    """The present times of a batch in seconds, for the borders of a split by shares."""

    column: Feature

    def __call__(self, batch: Batch) -> dict[str, npt.NDArray[np.float64]]:
        series = read_frame(batch, [self.column.name])[self.column.name]
        seconds = numeric_values(series, self.column.kind)
        return {"time": seconds[~np.isnan(seconds)]}


def plan_of(config: Config, dataset: Dataset, client: Any = None) -> Plan:
    """The plan for reading `dataset`; only a time split by shares reads rows for it.

    Raises:
        UserError: a column is missing or can't be what it should be; a rule can't be read.
    """
    roles = resolve_roles(config, dataset)
    rules = [parse_rule(text, dataset.names) for text in config.data.rules]
    rule_columns = dict.fromkeys(name for rule in rules for name in rule.columns)
    split_kind, borders = None, []
    if config.split.kind == "time":
        assert config.split.column is not None
        time = feature_of(dataset, config.split.column)
        split_kind = time.kind
        wanted = shares_wanted(config.split)
        if wanted:
            found = exact_quantiles(client, dataset.row_groups(), _Times(time), {"time": wanted})
            borders = found["time"]
    return Plan(
        target=feature_of(dataset, roles.target.name),
        features=tuple(
            feature_of(dataset, column.name, column.categorical) for column in roles.features
        ),
        split=resolve_split(config.split, borders),
        weight=feature_of(dataset, roles.weight.name) if roles.weight else None,
        by=tuple(column.name for column in roles.by),
        rules=config.data.rules,
        rule_columns=tuple(feature_of(dataset, name) for name in rule_columns),
        split_kind=split_kind,
    )

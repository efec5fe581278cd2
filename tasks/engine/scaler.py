"""Fitting the scaler: from the profile's moments to the encoder of the features.

Constant columns are treated as scikit-learn's StandardScaler and MinMaxScaler do: centred, with a
scale of 1. A column without any training value keeps center 0 and scale 1.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from tasks.engine.moments import Moments
from tasks.engine.rows import Plan
from tasks.engine.scoring import Column, Encoder

EPSILON = float(np.finfo(np.float64).eps)


def encoder_of(
    plan: Plan,
    numbers: Moments,
    categories: Sequence[Mapping[str, int]],
    kind: Literal["standard", "minmax", "none"],
    texts: Collection[str] = (),
) -> Encoder:
    """`numbers` and `categories` are of the training rows, in the plan's order of each sort.

    `texts` are the columns of the table that hold texts.
    """
    columns, number, category = [], 0, 0
    for feature in plan.features:
        if feature.kind == "category":
            known, of_texts = tuple(sorted(categories[category])), feature.name in texts
            columns.append(Column(feature.name, "category", categories=known, of_texts=of_texts))
            category += 1
            continue
        center, scale = _scaling(numbers, number, kind)
        columns.append(Column(feature.name, feature.kind, center, scale))
        number += 1
    return Encoder(tuple(columns))


def _scaling(numbers: Moments, i: int, kind: str) -> tuple[float, float]:
    count, mean = float(numbers.count[i]), float(numbers.mean[i])
    if kind == "none" or not count:
        return 0.0, 1.0
    if kind == "minmax":
        span = float(numbers.high[i] - numbers.low[i])
        return float(numbers.low[i]), span if span >= 10 * EPSILON else 1.0
    variance = float(numbers.variance[i])
    # the bound within which the variance of a constant column can lie by rounding alone
    # (sklearn.preprocessing._data._is_constant_feature)
    constant = variance <= count * EPSILON * variance + (count * mean * EPSILON) ** 2
    return mean, 1.0 if constant else float(np.sqrt(variance))

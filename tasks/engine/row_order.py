"""The order of the training rows in a matrix: those that trees keep together lie together.

A round adds up the rows of one node of the tree after the other. In the order of the table these
lie scattered over all of the matrix, and a third of a round is spent on waiting for memory. Sums
of gradients are exact, so the model has the same bytes in any order, and this one is the quickest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost as xgb

from tasks.engine.batches import Batch, BatchSource, Float32

# Rows of a batch are sorted by cells: the quarters of the features by which trees part them first.
MOST_FEATURES = 5
QUARTERS = 4
CELL_ROWS = 64  # of a batch, at least: to sort by smaller cells takes longer and gives nothing
# What is looked at to find these features.
SAMPLE_ROWS = 32_768
SAMPLE_DEPTH = 6
# Sorting takes as long as it saves in about so many rounds.
WORTH_ROUNDS = 20


@dataclass(frozen=True)
class Cells:
    """`bounds` are of features by their place, the weightiest first: float32 (QUARTERS - 1,)."""

    bounds: tuple[tuple[int, Float32], ...]

    @classmethod
    def of(cls, batch: Batch, reference: Any, threads: int) -> "Cells":
        """From one tree on some of a batch's rows, in the bins of the matrix `reference`; outside
        of a group, which it would wait for.
        """
        some = slice(SAMPLE_ROWS)
        features, label = batch.features[some], batch.label[some]
        if not len(label):
            return cls(())
        matrix = xgb.QuantileDMatrix(
            features,
            (label - label.mean()).astype(np.float32),
            ref=reference,
            max_bin=reference.max_bin,
            feature_types=reference.feature_types,
            enable_categorical=True,
            nthread=threads,
        )
        parameters = {
            "max_depth": SAMPLE_DEPTH,
            "tree_method": "hist",
            "max_bin": reference.max_bin,
            "nthread": threads,
        }
        tree = xgb.train({**parameters, "base_score": 0.0, "verbosity": 0}, matrix, 1)
        gains = tree.get_score(importance_type="total_gain")
        places = [int(name[1:]) for name in sorted(gains, key=gains.__getitem__, reverse=True)]
        return cls(tuple((place, _quarters(features[:, place])) for place in places))

    def order(self, features: Float32) -> npt.NDArray[np.intp]:
        """The rows (n,) of float32 (n, p) by their cells; rows of a cell stay in their order."""
        cell = np.zeros(len(features), np.uint16)
        room = len(features) // CELL_ROWS
        for place, bounds in self.bounds[:MOST_FEATURES]:
            room //= QUARTERS
            if room == 0:
                break
            values = features[:, place]
            cell *= QUARTERS
            for bound in bounds:
                cell += values > bound
        return np.argsort(cell, kind="stable")

    def sorted(self, batch: Batch) -> Batch:
        order = self.order(batch.features)
        return Batch(
            # whole rows move quicker than values of one column after the other
            np.take(np.ascontiguousarray(batch.features), order, axis=0),
            batch.label[order],
            batch.position[order],
            None if batch.weight is None else batch.weight[order],
        )


def in_order(sources: Sequence[BatchSource], reference: Any, threads: int) -> Sequence[BatchSource]:
    """The same batches with sorted train rows. Reads the middle one, and raises what that raises.

    Must be called before the worker joins its group.
    """
    cells = Cells.of(sources[len(sources) // 2].read().train, reference, threads)
    return [source.sorted(cells.sorted) for source in sources] if cells.bounds else sources


def _quarters(values: Float32) -> Float32:
    known = values[~np.isnan(values)]
    return np.quantile(known, np.arange(1, QUARTERS) / QUARTERS).astype(np.float32)

"""What is trained, but for the rows: a value that goes to every worker of a group."""

import math
from dataclasses import replace
from typing import Any

from tasks.engine.checkpoints import Checkpoint, CheckpointStore, History
from tasks.engine.dataset import Frozen
from tasks.engine.frames import Device

# A target whose largest deviation is that many standard deviations is too coarse when shifted.
HEAVY_TAIL = 256


class BoostSpec(Frozen):
    """A training but for its rows.

    `params` are XGBoost's tree parameters, checked; objective, seed, device, threads and row
    sampling are set from the other fields. `mean`, `max_deviation` (max |y - mean| over train and
    valid), and the variances (of the population) are the target's; `valid_variance` is None
    without valid rows. `max_weight` is None without weights. `column_chunk` is the number of rounds
    that share a seed of column sampling, None without. `threads` None takes the worker's own.
    """

    n_estimators: int
    params: dict[str, Any]
    feature_names: tuple[str, ...]
    feature_types: tuple[str, ...]
    mean: float
    max_deviation: float
    train_variance: float
    valid_variance: float | None = None
    max_weight: float | None = None
    subsample: float = 1.0
    early_stopping_rounds: int | None = None
    checkpoint_every: int = 20
    column_chunk: int | None = None
    seed: int = 0
    device: Device = "cpu"
    threads: int | None = None

    @property
    def max_bin(self) -> int:
        return int(self.params.get("max_bin", 256))

    @property
    def depth(self) -> int:
        return int(self.params.get("max_depth", 6))

    @property
    def leaves(self) -> int:
        return int(self.params.get("max_leaves", 0))

    @property
    def own_objective(self) -> bool:
        """Whether gradients are ours: for weights, row sampling, or a very long tail."""
        heavy = self.max_deviation > HEAVY_TAIL * math.sqrt(self.train_variance)
        return self.max_weight is not None or self.subsample < 1 or heavy

    def is_complete(self, history: History) -> bool:
        return history.rounds >= self.n_estimators or self.has_stopped(history)

    def has_stopped(self, history: History) -> bool:
        return history.stops_at(self.early_stopping_rounds) is not None

    def latest(self, store: CheckpointStore) -> Checkpoint | None:
        """The newest checkpoint to go on from, with its history up to where this one stops.

        The store may hold rounds that came of more patience. Rounds are the same in both: the
        model is then cut off where a training from nothing would have stopped.
        """
        found = store.latest(self.n_estimators, self.column_chunk)
        end = found.history.stops_at(self.early_stopping_rounds) if found else None
        if found is None or end is None:
            return found
        return replace(found, rounds=end, history=found.history.first(end), stopped=True)

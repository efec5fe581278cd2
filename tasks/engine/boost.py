"""Boosting on one worker of a group: the same bytes whatever the group and wherever it resumes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xgboost as xgb
from threadpoolctl import threadpool_limits
from xgboost import collective

from tasks.engine.batches import BatchSource, Float32, open_cache
from tasks.engine.booster import checked_device, raw_of
from tasks.engine.checkpoints import Checkpoint, History
from tasks.engine.frames import Device
from tasks.engine.loopback import new_listeners_on_loopback
from tasks.engine.matrix import Matrices, Schema, matrices, reference_matrix
from tasks.engine.memory import Place, Share, give_back, place_of
from tasks.engine.objective import LabelScale, SquaredError
from tasks.engine.round_error import RoundErrors, round_errors
from tasks.engine.row_order import WORTH_ROUNDS, in_order
from tasks.engine.spec import BoostSpec

# RMSE is a sum whose order depends on the group: beyond these digits it may differ.
SIGNIFICANT_DIGITS = 10

OnRound = Callable[[int, dict[str, float]], None]


def round_metrics(spec: BoostSpec, history: History, round_: int) -> dict[str, float]:
    """RMSE and R² after `round_` rounds. R² = 1 - RMSE² / variance, as all rows have one mean."""
    metrics = {"train_rmse": history.train_rmse[round_ - 1]}
    metrics["train_r2"] = _r2(metrics["train_rmse"], spec.train_variance)
    if spec.valid_variance is not None:
        metrics["valid_rmse"] = history.valid_rmse[round_ - 1]
        metrics["valid_r2"] = _r2(metrics["valid_rmse"], spec.valid_variance)
    return metrics


def _r2(rmse: float, variance: float) -> float:
    """0 for a constant target that is not met exactly, as scikit-learn has it."""
    if variance <= 0:
        return 1.0 if rmse == 0 else 0.0
    return 1 - rmse * rmse / variance


@dataclass(frozen=True)
class Segment:
    """What a worker's part in a training came to; `checkpoint` only from the one that saves.

    `external` says whether the bins were on disk.
    """

    checkpoint: Checkpoint | None
    train_rows: int
    device: Device
    external: bool = False


def boost_segment(
    spec: BoostSpec,
    sources: Sequence[BatchSource],
    sample: Float32,
    start: Checkpoint | None,
    *,
    group: Mapping[str, Any] | None,
    save: Callable[[Checkpoint], None],
    on_round: OnRound,
    check_stop: Callable[[], None] = lambda: None,
    threads: int = 1,
    share: Share | None = None,
    on_external: Callable[[str], None] = lambda note: None,
) -> Segment:
    """Trains from `start` to the last round together with the other workers of the group.

    `sample` float32 (n, p) gives the bins and must be the same on every worker. `group` holds the
    arguments of XGBoost's communicator, None for a worker on its own. The first worker with
    train rows saves checkpoints and reports rounds (counted from 1). `check_stop` is called every
    round and raises to end the training. `share` says what there is room for, None for no limit;
    `on_external` gets a sentence when the bins go to disk.

    Raises:
        RunError: there is no room for the share, in memory or on disk.
        UserError: the device is not the one asked for.
        xgboost.core.XGBoostError: another worker of the group failed or was lost.
        Whatever a batch source, `save`, `on_round` or `check_stop` raises.
    """
    threads = spec.threads or threads
    schema = Schema(spec.feature_names, spec.feature_types)
    scale = LabelScale.of(spec)
    with xgb.config_context(verbosity=0), ExitStack() as stack:
        # beyond the worker's OMP_NUM_THREADS, which XGBoost takes for the most there may be
        stack.enter_context(threadpool_limits(threads, user_api="openmp"))
        reference = reference_matrix(sample, schema, spec.max_bin, threads)
        share = share or Share()
        need = share.need(spec, sample, reference)
        del sample
        give_back()  # what earlier passes freed: there is room for so much more
        rounds = spec.n_estimators - (start.rounds if start else 0)
        if rounds >= WORTH_ROUNDS and share.room.orders_rows(need):
            sources = in_order(sources, reference, threads)
        if group:
            with new_listeners_on_loopback(str(group["dmlc_tracker_uri"])):
                stack.enter_context(collective.CommunicatorContext(**group))
        place = stack.enter_context(place_of(share, need, on_external))
        # nothing here holds the matrices: they go before their pages do
        segment = _boost(
            spec,
            scale,
            threads,
            start,
            matrices(
                stack.enter_context(open_cache(sources, place.cache)),
                reference,
                schema,
                scale.to_label,
                spec.max_bin,
                threads,
                with_valid=spec.valid_variance is not None,
                keeps_rows=spec.own_objective,
                complete=share.complete(spec),
                pages=place.pages,
            ),
            place,
            save,
            on_round,
            check_stop,
        )
        return replace(segment, external=place.pages is not None)


def _boost(
    spec: BoostSpec,
    scale: LabelScale,
    threads: int,
    start: Checkpoint | None,
    built: Matrices,
    place: Place,
    save: Callable[[Checkpoint], None],
    on_round: OnRound,
    check_stop: Callable[[], None],
) -> Segment:
    give_back()  # the batches
    train, valid = built.train, built.valid
    objective = SquaredError(spec, scale, built.rows) if spec.own_objective else None
    saves = _saves(train.num_row())
    sides = {"train": train} if valid is None else {"train": train, "valid": valid}
    errors = round_errors(sides, spec.device)
    progress = _Progress(spec, start, objective, errors, saves, save, on_round, check_stop)
    _train(spec, scale, threads, place.nodes, train, objective, progress)
    return Segment(progress.last if saves else None, train.num_row(), progress.device)


def _saves(train_rows: int) -> bool:
    """Whether this is the first worker with train rows: one without saves other bytes."""
    rank, world = collective.get_rank(), collective.get_world_size()
    if world == 1:
        return True
    mine = np.array([rank if train_rows else world], dtype=np.int64)
    return bool(collective.allreduce(mine, collective.Op.MIN)[0] == rank)


def _train(
    spec: BoostSpec,
    scale: LabelScale,
    threads: int,
    nodes: int | None,
    train: Any,
    objective: SquaredError | None,
    progress: "_Progress",
) -> None:
    """One call of XGBoost, or with column sampling one per chunk, each with a seed of its own."""
    params = {
        **spec.params,
        "objective": "reg:squarederror",
        "eval_metric": "rmse",
        "base_score": scale.offset,
        "tree_method": "hist",
        "device": spec.device,
        "nthread": threads,
        "verbosity": 0,
    }
    if nodes is not None:  # of as many nodes as this, or of none, the sums are the same
        params["max_cached_hist_node"] = nodes
    while not spec.is_complete(progress.history):
        begin = progress.history.rounds
        chunk, end = 0, spec.n_estimators
        if spec.column_chunk is not None:
            chunk = begin // spec.column_chunk
            end = min(end, (chunk + 1) * spec.column_chunk)
        progress.begin(begin)
        booster = xgb.train(
            {**params, "seed": (spec.seed + chunk) % 2**31},
            train,
            end - begin,
            evals=progress.errors.evals(),
            obj=objective,
            verbose_eval=False,
            xgb_model=bytearray(progress.raw) if progress.raw else None,
            callbacks=[progress],
        )
        progress.raw = raw_of(booster)
        del booster  # with what it holds of a GPU: the next takes as much
    if progress.raw is not None:
        progress.finish()


class _Progress(xgb.callback.TrainingCallback):
    """Follows the rounds: history, checkpoints, reports, early stopping."""

    def __init__(
        self,
        spec: BoostSpec,
        start: Checkpoint | None,
        objective: SquaredError | None,
        errors: RoundErrors,
        saves: bool,
        save: Callable[[Checkpoint], None],
        on_round: OnRound,
        check_stop: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.history = start.history if start else History()
        self.raw: bytes | None = start.raw if start else None
        self.last = start
        self.errors = errors
        self.saves = saves
        self.device: Device = spec.device
        self._begin = 0
        self._objective = objective
        self._save = save
        self._on_round = on_round
        self._check_stop = check_stop

    def begin(self, rounds: int) -> None:
        """`rounds` are behind the next call of XGBoost, which counts its own from 0."""
        self._begin = rounds

    def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        self._check_stop()
        if self._objective is not None:
            self._objective.round = self._begin + epoch
        return False

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        if epoch == 0:
            self.device = checked_device(model, self.spec.device)
        rmse = {side: _rounded(x) for side, x in self.errors.rmse(model, evals_log).items()}
        self.history = self.history.with_round(rmse["train"], rmse.get("valid"))
        done = self.history.rounds
        if self.saves:
            self._on_round(done, round_metrics(self.spec, self.history, done))
            if done % self.spec.checkpoint_every == 0:
                self._keep(raw_of(model))
        return self.spec.has_stopped(self.history)

    def finish(self) -> None:
        """A checkpoint of the last round, where its round had none."""
        last = self.last
        stopped = self.spec.has_stopped(self.history)
        fresh = last is None or last.rounds != self.history.rounds or last.stopped != stopped
        if self.saves and fresh and self.raw is not None:
            self._keep(self.raw)

    def _keep(self, raw: bytes) -> None:
        stopped = self.spec.has_stopped(self.history)
        self.last = Checkpoint(self.history.rounds, raw, self.history, stopped)
        self._save(self.last)


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")

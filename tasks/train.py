"""The boosting, told round by round, and the model that comes out of it."""

import time
from collections.abc import Callable
from typing import Any, Literal, cast

import xgboost as xgb
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import task_run

from tasks.engine.boost import round_metrics
from tasks.engine.boosting import boost, checkpoints_of, spec_of, training_key
from tasks.engine.checkpoints import History
from tasks.engine.config import Config
from tasks.engine.dataset import Dataset, Frozen
from tasks.engine.frames import Device
from tasks.engine.home import Home
from tasks.engine.members import Event
from tasks.engine.predictions import store_scorer
from tasks.engine.profile import Profile
from tasks.engine.progress import Progress, reporter
from tasks.engine.rows import Plan
from tasks.engine.scoring import Encoder, Scorer
from tasks.engine.secrets import with_clean_errors
from tasks.engine.spec import BoostSpec
from tasks.engine.workers import alive_workers
from tasks.figures import amount, figure, rows_of, score

Rounds = Callable[[int, dict[str, float]], None]

LOGGED_EVERY = 3.0  # seconds, at the most
# What is worth telling beside the rounds, by the kind of the event.
_NOTES = {
    "lost": "Workers were lost at round {round:,}: {note}.",
    "external": "{note}",
    "unsaved": "The checkpoint of round {round:,} could not be written: {note}",
}


class Trained(Frozen):
    """The model and how it came about; `gains` is the total gain of each feature that was used.

    `rounds` were trained, of which the model holds `best_rounds`; `r2_by_round` is of train and
    valid. `matrix` says where the binned features were, None where no round was left to train.
    """

    scorer_uri: str
    manifest_sha256: str
    model_sha256: str
    r2_by_round: dict[str, tuple[float, ...]]
    rounds: int
    best_rounds: int
    resumed_from_round: int
    recoveries: int
    workers: int
    device: Device
    gains: dict[str, float]
    matrix: Literal["memory", "external"] | None = None
    notes: tuple[str, ...] = ()


def _name() -> str:
    parameters = task_run.parameters
    boost_, rows = parameters["config"].boost, parameters["profile"].rows["train"]
    return f"train · {boost_.n_estimators:,} × depth {boost_.max_depth} · {rows_of(rows)}"


@task(
    name="train",
    task_run_name=_name,
    cache_policy=NO_CACHE,
)
@with_clean_errors
def train_model(
    config: Config,
    dataset: Dataset,
    plan: Plan,
    profile: Profile,
    home: Home,
    client: Any,
    on_round: Rounds,
    device: Device = "cpu",
) -> Trained:
    """Trains on the workers' `device` from the newest checkpoint; the model is under `home`.

    `on_round` gets every round from the first on, those of an earlier run too, each once.

    Raises:
        RunError: workers were lost again and again.
    """
    spec = spec_of(config, plan, profile, device)
    store = checkpoints_of(home, training_key(spec, dataset, plan, profile))
    start = spec.latest(store)
    reporter()(Progress("train", start.rounds if start else 0, spec.n_estimators, "rounds"))
    told = _Teller(spec, on_round, start.history if start else History())
    result = boost(client, spec, dataset, plan, profile, home, config.cluster, told)
    booster = xgb.Booster(model_file=bytearray(result.raw))
    encoder = Encoder.from_json(profile.encoder)
    scorer = store_scorer(Scorer(encoder, booster, profile.mean), home)
    # lists come of linear boosters only
    gains = cast(dict[str, float], booster.get_score(importance_type="total_gain"))
    return Trained(
        scorer_uri=scorer.uri,
        manifest_sha256=scorer.manifest_sha256,
        model_sha256=result.model_sha256,
        r2_by_round=_r2_by_round(spec, result.history),
        rounds=result.rounds,
        best_rounds=result.best_rounds,
        resumed_from_round=result.resumed_from_round,
        recoveries=result.recoveries,
        workers=max(result.workers, len(alive_workers(client))),
        device=result.device,
        gains={plan.names[int(name[1:])]: gain for name, gain in gains.items()},
        matrix=None if result.external is None else "external" if result.external else "memory",
        notes=tuple(told.notes),
    )


def _r2_by_round(spec: BoostSpec, history: History) -> dict[str, tuple[float, ...]]:
    rounds = [round_metrics(spec, history, i + 1) for i in range(history.rounds)]
    sides = ["train"] if spec.valid_variance is None else ["train", "valid"]
    return {side: tuple(metrics[f"{side}_r2"] for metrics in rounds) for side in sides}


class _Teller:
    """Passes on rounds, with those before the resume first, and moves the progress."""

    def __init__(self, spec: BoostSpec, on_round: Rounds, before: History) -> None:
        self._spec, self._on_round, self._tell = spec, on_round, reporter()
        self._log, self._next, self._logged = get_run_logger(), 1, 0.0
        self.notes: list[str] = []
        if before.rounds:
            self._log.info("Going on from the checkpoint of round %s", f"{before.rounds:,}")
        for round_ in range(1, before.rounds + 1):
            on_round(round_, round_metrics(spec, before, round_))

    def __call__(self, event: Event) -> None:
        told = _NOTES.get(event.kind)
        if told is not None:
            self.notes.append(told.format(round=event.round, note=event.note))
            self._log.warning(self.notes[-1])
            return
        note = ""
        if event.kind == "round":
            self._on_round(event.round, event.metrics)
            name = "valid" if "valid_r2" in event.metrics else "train"
            note = f"{name} R² {event.metrics[f'{name}_r2']:.4f}"
            self._log_now_and_then(event.round, event.metrics, name)
        elif event.round:
            workers = amount(len(event.workers), "workers")
            self._log.info("Training on %s from round %s on", workers, f"{event.round + 1:,}")
        self._tell(Progress("train", event.round, self._spec.n_estimators, "rounds", note))

    def _log_now_and_then(self, round_: int, metrics: dict[str, float], side: str) -> None:
        """The first round, the last, and a tenth of them on; not twice within some seconds."""
        total, now = self._spec.n_estimators, time.monotonic()
        if round_ != total and (round_ < self._next or now - self._logged < LOGGED_EVERY):
            return
        self._next, self._logged = round_ + max(1, total // 10), now
        r2, rmse = score(metrics[f"{side}_r2"]), figure(metrics[f"{side}_rmse"])
        self._log.info(
            "Round %s of %s: %s R² %s, RMSE %s", f"{round_:,}", f"{total:,}", side, r2, rmse
        )

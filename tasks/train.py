"""The boosting, told round by round, and the model that comes out of it."""

from collections.abc import Callable
from typing import Any, Literal, cast

import xgboost as xgb
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.engine.boost import BoostSpec, round_metrics
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

Rounds = Callable[[int, dict[str, float]], None]


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


@task(
    name="train",
    task_run_name="train · {config.boost.n_estimators} × depth {config.boost.max_depth} · "
    "{profile.usable} rows",
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
    start = store.latest(spec.n_estimators, spec.column_chunk)
    reporter()(Progress("train", start.rounds if start else 0, spec.n_estimators, "rounds"))
    told = _Teller(spec, on_round, start.history if start else History())
    result = boost(client, spec, dataset, plan, profile, home, config.cluster, told)
    booster = xgb.Booster(model_file=bytearray(result.raw))
    scorer = store_scorer(
        Scorer(Encoder.from_json(profile.encoder), booster, profile.mean), home, result.model_sha256
    )
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
        workers=max(result.workers, len(client.scheduler_info(n_workers=-1)["workers"])),
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
        self.notes: list[str] = []
        for round_ in range(1, before.rounds + 1):
            on_round(round_, round_metrics(spec, before, round_))

    def __call__(self, event: Event) -> None:
        if event.kind == "lost":
            self.notes.append(f"Workers were lost at round {event.round:,}: {event.note}.")
            return
        if event.kind == "external":
            self.notes.append(event.note)
            return
        if event.kind == "unsaved":
            self.notes.append(
                f"The checkpoint of round {event.round:,} could not be written: {event.note}"
            )
            return
        note = ""
        if event.kind == "round":
            self._on_round(event.round, event.metrics)
            name = "valid" if "valid_r2" in event.metrics else "train"
            note = f"{name} R² {event.metrics[f'{name}_r2']:.4f}"
        self._tell(Progress("train", event.round, self._spec.n_estimators, "rounds", note))

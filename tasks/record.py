"""What MLflow remembers of a run: its parameters, data, rounds, metrics, plots and model."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from fsspec.core import url_to_fs
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks import plots
from tasks.engine.config import Config, flatten
from tasks.engine.dataset import Dataset, Frozen
from tasks.engine.errors import RunError
from tasks.engine.frames import first_rows
from tasks.engine.profile import Profile
from tasks.engine.progress import Progress, reporter
from tasks.engine.report import Report
from tasks.engine.rows import Plan
from tasks.engine.sources import redact
from tasks.model import log_model
from tasks.tracking import Recorder
from tasks.train import Trained

EXAMPLE_ROWS = 3
PACKAGES = ("boostline", "xgboost", "xgboost-cu13", "dask", "mlflow", "numpy", "pandas", "prefect")


class Logged(Frozen):
    """Where the model is: `models:/<id>`, and its version where it was registered."""

    model_uri: str
    version: str | None


def begin(recorder: Recorder, config: Config, tags: Mapping[str, str]) -> None:
    """Every setting as a parameter, and where the run comes from as tags."""
    settings = flatten(config)
    settings["data.source"] = redact(config.data.source)
    settings["cluster.address"] = redact(config.cluster.address or "") or None
    recorder.params(settings)
    recorder.tags(
        {**_versions(), "code_revision": _revision(), **config.track.tags, **tags}
    )


def describe_data(recorder: Recorder, dataset: Dataset, plan: Plan, profile: Profile) -> None:
    """The dataset input with its digest, and the profile as an artifact."""
    used = set(plan.columns)
    recorder.dataset(
        name=dataset.source.rstrip("/").rsplit("/", 1)[-1],
        digest=profile.dataset_digest,
        source=dataset.source,
        schema={column.name: column.arrow for column in dataset.columns if column.name in used},
        rows=dataset.rows,
    )
    recorder.tags({"dataset_digest": profile.dataset_digest, "target": plan.target.name})
    recorder.metrics({f"rows/{side}": count for side, count in profile.rows.items()})
    recorder.text(profile.model_dump_json(indent=1, exclude={"encoder", "sample"}), "profile.json")


@task(name="record", task_run_name="record · {config.track.experiment}", cache_policy=NO_CACHE)
def record_model(
    config: Config,
    dataset: Dataset,
    plan: Plan,
    profile: Profile,
    trained: Trained,
    report: Report,
    recorder: Recorder,
) -> Logged:
    """Final metrics, report, plots and the model; all that was recorded has arrived afterwards.

    Raises:
        RunError: MLflow did not take everything; what it did not take is kept in the spool.
    """
    tell = reporter()
    tell(Progress("record", 0, 1, ""))
    recorder.metrics(_final_metrics(report), trained.best_rounds)
    recorder.tags(
        {
            "model_sha256": trained.model_sha256,
            "device": trained.device,
            "workers": str(trained.workers),
            "rounds": str(trained.best_rounds),
            "resumed_from_round": str(trained.resumed_from_round),
            "recoveries": str(trained.recoveries),
        }
    )
    recorder.text(report.model_dump_json(indent=1), "report.json")
    _draw(recorder, plan, trained, report)
    state = recorder.flush(timeout=120)
    if not state.complete:
        raise RunError(
            f"MLflow has not taken {state.pending + state.refused} of this run's entries: "
            f"{state.cause}. They are kept on disk."
        )
    logged = _log_model(config, dataset, plan, trained, recorder)
    tell(Progress("record", 1, 1, ""))
    return logged


def _log_model(
    config: Config, dataset: Dataset, plan: Plan, trained: Trained, recorder: Recorder
) -> Logged:
    kinds = {column.name: column.kind for column in dataset.columns}
    example = first_rows(dataset.row_groups()[0], plan.names, EXAMPLE_ROWS)
    with TemporaryDirectory() as folder:
        filesystem, path = url_to_fs(trained.scorer_uri)
        filesystem.get(f"{path}/", f"{folder}/scorer/", recursive=True)
        info = log_model(
            recorder.client,
            recorder.run_id,
            Path(folder, "scorer"),
            input_example=example,
            float_columns=[name for name in plan.names if kinds[name] == "float"],
            registered_name=config.track.model,
            metadata={"dataset_digest": dataset.digest, "model_sha256": trained.model_sha256},
            tags={"model_sha256": trained.model_sha256, "dataset_digest": str(dataset.digest)},
            metrics=["test_r2", "test_rmse", "test_mae"],
        )
    return Logged(model_uri=info.model_uri, version=info.version)


def _final_metrics(report: Report) -> dict[str, float]:
    found: dict[str, float] = {}
    for side, metrics in report.metrics.items():
        values = metrics.model_dump(exclude={"rows"})
        found |= {f"{side}_{name}": value for name, value in values.items()}
    for side, metrics in report.baseline.items():
        values = metrics.model_dump(include={"r2", "rmse", "mae"})
        found |= {f"baseline/{side}_{name}": value for name, value in values.items()}
    if report.interval:
        found |= {"test_r2_low": report.interval.low, "test_r2_high": report.interval.high}
    # MLflow's store takes no undefined values everywhere; what is undefined is in report.json
    return {name: value for name, value in found.items() if value == value}


def _draw(recorder: Recorder, plan: Plan, trained: Trained, report: Report) -> None:
    target = plan.target.name
    figures = {
        "learning_curve": plots.learning_curve(trained.r2_by_round, trained.best_rounds),
        "predicted_actual": plots.predicted_actual(report, target),
        "residuals": plots.residuals(report, target),
        "importance": plots.importance(trained.gains),
    }
    for name, figure in figures.items():
        recorder.figure(figure, f"plots/{name}.png")
    gains = dict(sorted(trained.gains.items(), key=lambda item: -item[1]))
    recorder.text(json.dumps(gains, indent=1, ensure_ascii=False), "importance.json")


def _versions() -> dict[str, str]:
    found = {"version.python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _revision() -> str:
    """The commit of the folder the user stands in, or nothing where that is no repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""



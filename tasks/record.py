"""What MLflow remembers of a run: its parameters, data, rounds, metrics, plots and model."""

import base64
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow as pa
from fsspec.core import url_to_fs
from mlflow.exceptions import MlflowException
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from pydantic import Field

from tasks import description, plots
from tasks.engine.config import Config, flatten
from tasks.engine.dataset import Dataset, Frozen
from tasks.engine.errors import RunError
from tasks.engine.parts import read_slices
from tasks.engine.profile import Profile
from tasks.engine.progress import Progress, reporter
from tasks.engine.report import Report
from tasks.engine.rows import Plan
from tasks.engine.scoring import Scorer, TamperedModelError
from tasks.engine.secrets import with_clean_errors, without_secrets
from tasks.ledger import FINDINGS, RunFolder
from tasks.model import log_model
from tasks.tracking import Recorded, Recorder
from tasks.train import Trained

EXAMPLE_ROWS = 3
FLOW_RUN_URL = "prefect.flow_run_url"
PACKAGES = ("boostline", "xgboost", "xgboost-cu13", "dask", "mlflow", "numpy", "pandas", "prefect")


class Logged(Frozen):
    """Where the model is: `models:/<id>`, and its version where it was registered.

    `pictures` are the plots, PNGs by their names.
    """

    model_uri: str
    version: str | None
    pictures: dict[str, bytes]


class Findings(Frozen):
    """All that a run found, small enough to keep: the recording can be done from it alone.

    `example` is a few of the rows that it trained on, as `example_of` writes them; `origin` are the
    tags that say which code trained, of which versions.
    """

    config: Config
    dataset: Dataset
    plan: Plan
    profile: Profile
    trained: Trained
    report: Report
    example: str = ""
    origin: dict[str, str] = Field(default_factory=dict)


def example_of(profile: Profile) -> str:
    """The first of the sampled training rows, raw, as an Arrow stream in base64; none of a sample
    that has none.
    """
    found = pd.DataFrame()
    for found in read_slices(profile.sample, profile.sample_share):
        if len(found):
            break
    table = pa.Table.from_pandas(found.head(EXAMPLE_ROWS), preserve_index=False)
    written = pa.BufferOutputStream()
    with pa.ipc.new_stream(written, table.schema) as stream:
        stream.write_table(table)
    return base64.b64encode(written.getvalue()).decode()


def _example(found: Findings) -> pd.DataFrame:
    written = base64.b64decode(found.example or example_of(found.profile))
    frame: pd.DataFrame = pa.ipc.open_stream(written).read_pandas()
    return frame


class NotRecorded(RunError):
    """The model is trained and kept, but MLflow has not taken all of the run."""


def begin(
    recorder: Recorder,
    config: Config,
    tags: Mapping[str, str],
    goes_on: bool = False,
    origin: Mapping[str, str] | None = None,
) -> None:
    """Every setting as a parameter, and where the run comes from as tags: `origin`, or from here.

    A run that goes on in an earlier one's record may be on another cluster, but MLflow lets no
    parameter change: those of the cluster stay as they began.
    """
    settings = flatten(config)
    if goes_on:
        settings = {
            key: value for key, value in settings.items() if key.partition(".")[0] != "cluster"
        }
    settings["data.source"] = config.data.shown
    recorder.params(settings)
    known = {
        **(origin_here() if origin is None else origin),
        "model": config.track.model or "",
        "data": description.table_name(config),
        "cluster": config.cluster.kind,
        description.NOTE: description.beginning(config, tags.get(FLOW_RUN_URL, "")),
    }
    recorder.tags({name: value for name, value in known.items() if value})
    recorder.tags({**config.track.tags, **tags, **({"cause": ""} if goes_on else {})})


def begin_again(recorder: Recorder, found: Findings, tags: Mapping[str, str]) -> None:
    """Of a run whose record is gone what its steps have recorded before; of the rounds R² alone."""
    begin(recorder, found.config, tags, origin=found.origin)
    describe_data(recorder, found.dataset, found.plan, found.profile)
    for side, values in found.trained.r2_by_round.items():
        for round_, r2 in enumerate(values, start=1):
            recorder.metrics({f"round/{side}_r2": r2}, round_)


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


def rounds_to(recorder: Recorder) -> Callable[[int, dict[str, float]], None]:
    """Records rounds, each once: a run that goes on tells those before its checkpoint again."""
    last = recorder.last_step("round/train_rmse")

    def on_round(round_: int, metrics: dict[str, float]) -> None:
        if round_ > last:
            recorder.metrics({f"round/{name}": value for name, value in metrics.items()}, round_)

    return on_round


@task(
    name="record",
    task_run_name="record · {found.config.track.experiment}",
    cache_policy=NO_CACHE,
)
@with_clean_errors
def record_run(found: Findings, recorder: Recorder, folder: RunFolder) -> Logged:
    """Final metrics, report, plots and the model; what it takes is on disk before it is sent.

    Raises:
        NotRecorded: MLflow did not take everything; `boostline record` does it later.
    """
    tell = reporter()
    tell(Progress("record", 0, 1, ""))
    folder.keep(FINDINGS, found)
    logged = finish_recording(found, recorder, folder)
    version = f", version {logged.version} of {found.config.track.model}" if logged.version else ""
    get_run_logger().info("Recorded %s%s", logged.model_uri, version)
    tell(Progress("record", 1, 1, ""))
    return logged


def finish_recording(found: Findings, recorder: Recorder, folder: RunFolder) -> Logged:
    """Records all that was found; may be done again without harm. Raises NotRecorded."""
    trained = found.trained
    recorder.metrics(_final_metrics(found.report), trained.best_rounds)
    recorder.tags(
        {
            "model_sha256": trained.model_sha256,
            "device": trained.device,
            "workers": str(trained.workers),
            "rounds": str(trained.best_rounds),
            "resumed": "yes" if trained.resumed_from_round else "no",
            "resumed_from_round": str(trained.resumed_from_round),
            "recoveries": str(trained.recoveries),
            **({"matrix": trained.matrix} if trained.matrix else {}),
        }
    )
    recorder.text(found.report.model_dump_json(indent=1), "report.json")
    pictures = _draw(recorder, found.plan, trained, found.report)
    state = recorder.flush(found.config.track.timeout)
    if not state.complete:
        raise not_taken(state, folder, found.config)
    try:
        logged = _log_model(found, recorder, pictures)
        recorder.tags({description.NOTE: _note(found, logged, recorder)})
    except (MlflowException, OSError) as error:
        raise NotRecorded(_kept(without_secrets(str(error)), folder)) from error
    return logged


def _note(found: Findings, logged: Logged, recorder: Recorder) -> str:
    """The run's description in markdown."""
    config, model = found.config, logged.model_uri.removeprefix("models:/")
    name = f"{config.track.model}/{logged.version}" if logged.version else logged.model_uri
    lines = [
        f"- Data: {description.data(config, found.dataset, found.plan, found.profile)}",
        f"- Model: `{model}`; score rows with `boostline predict {name} ROWS OUT`",
        f"- Trained on {description.made_by(found.trained)}",
    ]
    result = description.result(config, found.trained, found.report)
    if url := recorder.client.get_run(recorder.run_id).data.tags.get(FLOW_RUN_URL):
        result += f" [Flow run in Prefect]({url})"  # MLflow folds what comes later
    return "\n\n".join([result, description.sides(found.report), "\n".join(lines)])


def not_taken(state: Recorded, folder: RunFolder, config: Config) -> NotRecorded:
    """What to raise where MLflow has not confirmed everything within `track.timeout`."""
    missing = state.pending + state.refused
    are_missing = "1 entry is missing" if missing == 1 else f"{missing:,} entries are missing"
    waited = f"after {config.track.timeout:g} s (track.timeout) {are_missing}"
    return NotRecorded(_kept(f"{waited}, {state.cause or 'and no error was reported'}", folder))


def _kept(cause: str, folder: RunFolder) -> str:
    return (
        f"The model is trained, but MLflow has not taken the whole run: {' '.join(cause.split())}. "
        f"Nothing is lost, all of it is kept in {folder.path}. Once MLflow answers, `boostline "
        "record` finishes the recording."
    )


def _log_model(found: Findings, recorder: Recorder, pictures: dict[str, bytes]) -> Logged:
    config, dataset, trained = found.config, found.dataset, found.trained
    kinds = {column.name: column.kind for column in dataset.columns}
    names = found.plan.names
    texts = {feature.name for feature in found.plan.features if feature.kind == "category"}
    with TemporaryDirectory() as scratch:
        filesystem, path = url_to_fs(trained.scorer_uri)
        filesystem.get(f"{path}/", f"{scratch}/scorer/", recursive=True)
        try:
            Scorer.load(Path(scratch, "scorer"), manifest_sha256=trained.manifest_sha256)
        except TamperedModelError as error:
            raise RunError(f"The model in {trained.scorer_uri}: {error}") from None
        info = log_model(
            recorder.client,
            recorder.run_id,
            Path(scratch, "scorer"),
            input_example=_example(found),
            float_columns=[name for name in names if kinds[name] == "float" and name not in texts],
            registered_name=config.track.model,
            metadata={"dataset_digest": dataset.digest, "model_sha256": trained.model_sha256},
            tags={"model_sha256": trained.model_sha256, "dataset_digest": str(dataset.digest)},
            metrics=["test_r2", "test_rmse", "test_mae"],
        )
    return Logged(model_uri=info.model_uri, version=info.version, pictures=pictures)


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


def _draw(recorder: Recorder, plan: Plan, trained: Trained, report: Report) -> dict[str, bytes]:
    drawn = plots.pictures(
        report, plan.target.name, trained.r2_by_round, trained.best_rounds, trained.gains
    )
    pictures = {
        name: recorder.figure(figure, f"plots/{name}.png") for name, figure in drawn.items()
    }
    gains = dict(sorted(trained.gains.items(), key=lambda item: -item[1]))
    recorder.text(json.dumps(gains, indent=1, ensure_ascii=False), "importance.json")
    return pictures


def origin_here() -> dict[str, str]:
    """Tags that say which code runs here, of which versions."""
    return {**_versions(), **_source()}


def _versions() -> dict[str, str]:
    found = {"version.python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _source() -> dict[str, str]:
    """What ran, in the tags that MLflow's pages show as a run's source."""
    revision = _revision()
    commit = revision.removesuffix("-dirty")
    return {
        "code_revision": revision,
        "mlflow.source.name": "boostline train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit if re.fullmatch(r"[0-9a-f]{40}", commit) else "",
    }


def _revision() -> str:
    """The commit of the folder the user stands in, or nothing where that is no repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

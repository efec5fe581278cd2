"""Runs that MLflow remembers: the last ones as lines, and one of them whole."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ValidationError

from tasks.engine.config import Config, flatten
from tasks.engine.dataset import Frozen
from tasks.engine.errors import UserError, listing, nearest
from tasks.engine.report import Report
from tasks.engine.summary import Summary
from tasks.sending import flattened
from tasks.tracking import Recorder

OUTCOME = "outcome.json"
REPORT = "report.json"
LAST = "last"
# what every run of the train flow has from its start on
OURS = "tags.`prefect.flow_run_id` LIKE '%'"
NEWEST = ["attributes.start_time DESC"]
SEARCHED = 5000

_Model = TypeVar("_Model", bound=BaseModel)


class Kept(Frozen):
    """What a run said of itself at its end."""

    summary: Summary
    notes: tuple[str, ...]
    trained_rounds: int


class Remembered(Frozen):
    """A run as one line. Times are milliseconds since 1970; what a run has not (yet) is None.

    `state` is MLflow's, in small letters; `version` is `name/number` of the registered model.
    """

    run_id: str
    name: str
    experiment: str
    state: str
    cause: str
    started: int
    ended: int | None
    r2: float | None
    rows: int | None
    version: str | None


class Page(Frozen):
    """A run whole: its line, its report, and which of its settings are not the defaults."""

    line: Remembered
    kept: Kept | None
    report: Report | None
    model_uri: str | None
    settings: dict[str, str]
    tags: dict[str, str]


def keep_outcome(recorder: Recorder, kept: Kept) -> None:
    """The end of a run as the artifact `outcome.json`, for `boostline show`."""
    recorder.text(kept.model_dump_json(indent=1), OUTCOME)


def last_runs(client: MlflowClient, experiment: str | None, limit: int) -> list[Remembered]:
    """The last `limit` runs of the train flow, the newest first; of all experiments for None.

    Raises:
        UserError: there is no such experiment.
    """
    names = _experiments(client, experiment)
    return _lines(client, _search(client, names, limit), names)


def find_run(client: MlflowClient, wanted: str) -> Run:
    """The run with this id, the beginning of its id or its name (the newest), or `last`.

    Raises:
        UserError: there is none, or an id's beginning is that of several.
    """
    names = _experiments(client, None)
    if wanted == LAST:
        runs = _search(client, names, 1)
        if not runs:
            raise UserError("There is no run yet. `boostline train` makes one.")
        return runs[0]
    runs = _search(client, names, SEARCHED)
    if named := [run for run in runs if wanted in (run.info.run_id, run.info.run_name)]:
        return named[0]
    begun = [run for run in runs if run.info.run_id.startswith(wanted)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        ids = listing(run.info.run_id[: len(wanted) + 4] for run in begun)
        raise UserError(f"The ids of {len(begun)} runs begin with {wanted!r}: {ids}. Write more.")
    hint = nearest(wanted, (run.info.run_name for run in runs))
    raise UserError(f"There is no run {wanted!r}.{hint} `boostline runs` lists the last ones.")


def read_run(client: MlflowClient, run: Run) -> Page:
    """All that MLflow has of a run and a person would want to see."""
    names = _experiments(client, None)
    outputs = run.outputs.model_outputs if run.outputs else []
    return Page(
        line=_lines(client, [run], names)[0],
        kept=_artifact(client, run, OUTCOME, Kept),
        report=_artifact(client, run, REPORT, Report),
        model_uri=f"models:/{outputs[0].model_id}" if outputs else None,
        settings=chosen_settings(run.data.params),
        tags=dict(run.data.tags),
    )


def chosen_settings(params: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a run that differ from the defaults of the configuration."""
    usual = {
        key: value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in flattened(flatten(Config()))
    }
    return {key: value for key, value in sorted(params.items()) if usual.get(key) != value}


def _experiments(client: MlflowClient, wanted: str | None) -> dict[str, str]:
    """Names of experiments by id: of one, or of all."""
    all_of_them = {each.experiment_id: each.name for each in client.search_experiments()}
    names = {key: name for key, name in all_of_them.items() if wanted in (None, name)}
    if wanted is not None and not names:
        known = [name for name in all_of_them.values() if name != "Default"]
        raise UserError(
            f"There is no experiment {wanted!r} (--experiment).{nearest(wanted, known)} "
            f"MLflow has: {listing(known) or 'none'}."
        )
    return names


def _search(client: MlflowClient, names: Mapping[str, str], limit: int) -> list[Run]:
    return list(
        client.search_runs(list(names), filter_string=OURS, max_results=limit, order_by=NEWEST)
    )


def _lines(client: MlflowClient, runs: Sequence[Run], names: Mapping[str, str]) -> list[Remembered]:
    versions = _versions(client, [run.info.run_id for run in runs])
    return [
        Remembered(
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            experiment=names.get(run.info.experiment_id, ""),
            state=run.info.status.lower(),
            cause=run.data.tags.get("cause", ""),
            started=run.info.start_time,
            # MLflow keeps the end of a first try of one that goes on
            ended=None if run.info.status == "RUNNING" else run.info.end_time,
            r2=run.data.metrics.get("test_r2"),
            rows=_rows(run),
            version=versions.get(run.info.run_id),
        )
        for run in runs
    ]


def _rows(run: Run) -> int | None:
    for each in run.inputs.dataset_inputs if run.inputs else []:
        rows = json.loads(each.dataset.profile or "{}").get("num_rows")
        return int(rows) if rows is not None else None
    return None


def _versions(client: MlflowClient, run_ids: Sequence[str]) -> dict[str, str]:
    if not run_ids:
        return {}
    among = ", ".join(f"'{run_id}'" for run_id in run_ids)
    found = client.search_model_versions(f"run_id IN ({among})")
    return {str(version.run_id): f"{version.name}/{version.version}" for version in found}


def _artifact(client: MlflowClient, run: Run, name: str, model: type[_Model]) -> _Model | None:
    """An artifact of a run, None where it has none or one of another version's shape."""
    with TemporaryDirectory() as scratch:
        try:
            path = client.download_artifacts(run.info.run_id, name, scratch)
            return model.model_validate_json(Path(path).read_bytes())
        except (MlflowException, OSError, ValidationError):
            return None

"""This run beside the last one of the same model and beside the champion, from MLflow."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from tasks.figures import figure, percent, score

CHAMPION = "champion"
# Runs of a page, and pages: of a model without a name the others of its experiment are among them.
PAGE, PAGES = 100, 10
# What is compared: its name on the page, MLflow's name, and whether more is better.
COMPARED = (
    ("test R²", "test_r2", True),
    ("test RMSE", "test_rmse", False),
    ("test MAE", "test_mae", False),
    ("test median error", "test_median_absolute_error", False),
    ("test MAPE", "test_mape", False),
    ("valid R²", "valid_r2", True),
    ("valid RMSE", "valid_rmse", False),
    ("train R²", "train_r2", True),
    ("train RMSE", "train_rmse", False),
)


@dataclass(frozen=True)
class Recorded:
    """A finished run as MLflow has it; `version` of the registered model where it is one's."""

    run_id: str
    name: str
    metrics: Mapping[str, float]
    digest: str
    version: str | None = None


@dataclass(frozen=True)
class Comparison:
    """This run, the last run of the same model before it, and the champion, where there are any."""

    this: Recorded
    last: Recorded | None
    champion: Recorded | None

    @property
    def reference(self) -> Recorded | None:
        """What the difference is to: the champion, else the last run."""
        return self.champion or self.last


def compare(client: MlflowClient, run_id: str, model: str | None) -> Comparison:
    """Looks the others up. Raises MlflowException where MLflow does not answer."""
    run = client.get_run(run_id)
    last = next(
        (
            _recorded(other)
            for other in _finished(client, run)
            if other.info.run_id != run_id
            and other.info.start_time < run.info.start_time
            and _same_model(other, run)
        ),
        None,
    )
    return Comparison(_recorded(run), last, _champion(client, model) if model else None)


def _finished(client: MlflowClient, like: Run) -> Iterator[Run]:
    """Finished runs of the experiment, and of the model's name if it has one, newest first."""
    wanted = "attributes.status = 'FINISHED'"
    if name := like.data.tags.get("model", ""):
        wanted += f" and tags.model = '{name}'"  # which holds no quotes
    token = None
    for _ in range(PAGES):
        page = client.search_runs(
            [like.info.experiment_id],
            wanted,
            max_results=PAGE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _same_model(one: Run, other: Run) -> bool:
    """Of one registered name, or of none, and with one target; the data may be another day's."""
    names = ((run.data.tags.get("model", ""), run.data.tags.get("target")) for run in (one, other))
    return next(names) == next(names)


def _champion(client: MlflowClient, model: str) -> Recorded | None:
    try:
        version = client.get_model_version_by_alias(model, CHAMPION)
        run = client.get_run(str(version.run_id))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None  # no such alias, or its run was deleted
        raise
    return _recorded(run, str(version.version))


def _recorded(run: Run, version: str | None = None) -> Recorded:
    data, info = run.data, run.info
    digest = data.tags.get("dataset_digest", "")
    return Recorded(info.run_id, info.run_name or "", dict(data.metrics), digest, version)


def rows(found: Comparison) -> list[dict[str, str]]:
    """The table: a row a metric, numbers as people read them; what is unknown is a dash."""
    table = []
    for label, name, more_is_better in COMPARED:
        if name not in found.this.metrics:
            continue
        row = {
            "metric": label,
            "this run": _shown(name, found.this),
            "last run": _shown(name, found.last),
            "champion": _shown(name, found.champion),
            "difference": _difference(name, found, more_is_better),
        }
        table.append(row)
    return table


def headline(found: Comparison) -> str:
    """What the table is about, in a sentence or two."""
    if found.last is None and found.champion is None:
        return "The first run of this model: there is nothing yet to compare it with."
    parts = []
    if found.last:
        parts.append(f"last run: {found.last.name}")
    if found.champion:
        parts.append(f"champion: version {found.champion.version}")
    reference = "champion" if found.champion else "last run"
    text = f"{'; '.join(parts)}. Difference: this run − {reference}."
    if found.reference and found.reference.digest != found.this.digest:
        text += f" The {reference} had other data, so its test rows differ."
    return text[0].upper() + text[1:]


def _shown(name: str, run: Recorded | None) -> str:
    if run is None or name not in run.metrics:
        return "–"
    return _figure(name, run.metrics[name])


def _figure(name: str, value: float) -> str:
    if name.endswith("_mape"):
        return percent(value)
    return score(value) if name.endswith("_r2") else figure(value)


def _difference(name: str, found: Comparison, more_is_better: bool) -> str:
    if found.reference is None or name not in found.reference.metrics:
        return "–"
    difference = found.this.metrics[name] - found.reference.metrics[name]
    if difference == 0:
        return "0"
    sign = "+" if difference > 0 else "−"
    word = "better" if (difference > 0) == more_is_better else "worse"
    return f"{sign}{_figure(name, abs(difference))} ({word})"

"""A run in markdown, as MLflow's description and Prefect's report have it."""

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.engine.config import Config
from tasks.engine.dataset import Dataset
from tasks.engine.profile import Profile
from tasks.engine.report import SIDES, Metrics, Report, Slice
from tasks.engine.rows import Plan
from tasks.figures import amount, figure, percent, score
from tasks.train import Trained

NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description
CATEGORIES_SHOWN = 8


def table_name(config: Config) -> str:
    """The table's name without its folders: `housing.csv`."""
    return config.data.shown.partition("?")[0].rstrip("/").rsplit("/", 1)[-1] or config.data.shown


def mlflow_page(client: MlflowClient, run_id: str, pages: str) -> str:
    """The run's page in MLflow, whose pages are at the address `pages`; empty where that is.

    Empty too where MLflow does not answer just now: for a link no run is given up.
    """
    if not pages:
        return ""
    try:
        experiment = client.get_run(run_id).info.experiment_id
    except (MlflowException, OSError):
        return ""
    return f"{pages.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def beginning(config: Config, flow_run_url: str) -> str:
    """What MLflow says of a run that is under way."""
    text = f"Training for {_code(config.target)} of {_code(table_name(config))} is under way."
    return text + (f"\n\n[Flow run in Prefect]({flow_run_url})" if flow_run_url else "")


def without_result(config: Config, cause: str) -> str:
    """What MLflow says of a run that came to no result."""
    return f"Training for {_code(config.target)} of {_code(table_name(config))} has ended: {cause}"


def result(config: Config, trained: Trained, report: Report) -> str:
    """The test R² with its interval, in a sentence."""
    test = report.metrics["test"]
    interval = ""
    if report.interval:
        low, high = score(report.interval.low), score(report.interval.high)
        interval = f" ({100 * report.interval.confidence:.4g} %: {low} to {high})"
    made = f"{amount(trained.best_rounds, 'rounds')} of depth {config.boost.max_depth}"
    if trained.rounds > trained.best_rounds:
        made += f", the best of {trained.rounds:,}"
    return (
        f"Test R² **{score(test.r2)}**{interval} for {_code(config.target)} of "
        f"{_code(table_name(config))}: {made}."
    )


def data(config: Config, dataset: Dataset, plan: Plan, profile: Profile) -> str:
    """The table, its size and its digest, in a line."""
    return (
        f"{_code(config.data.shown)}, {dataset.rows:,} rows, {amount(plan.width, 'features')}, "
        f"digest {_code(profile.dataset_digest[:12])}"
    )


def made_by(trained: Trained) -> str:
    """Where the model was trained, and what happened on the way."""
    parts = [f"{trained.device}, {amount(trained.workers, 'workers')}"]
    if trained.resumed_from_round:
        parts.append(f"resumed from round {trained.resumed_from_round:,}")
    if trained.recoveries:
        times = "once" if trained.recoveries == 1 else f"{trained.recoveries:,} times"
        parts.append(f"workers lost and replaced {times}")
    if trained.matrix == "external":
        beyond = "in the host's memory" if trained.device == "cuda" else "on disk"
        parts.append(f"binned features {beyond}")
    return ", ".join(parts)


def sides(report: Report) -> str:
    """Metrics by side as a table."""
    lines = [
        "| rows | number | R² | RMSE | MAE | median error | MAPE |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    found = [(side, report.metrics[side]) for side in SIDES if side in report.metrics]
    found = [(side, metrics) for side, metrics in found if metrics.rows]
    if "test" in report.baseline:
        found.append(("mean of the target", report.baseline["test"]))  # type: ignore[arg-type]
    lines += [f"| {name} | {' | '.join(_cells(metrics))} |" for name, metrics in found]
    return "\n".join(lines)


def categories(report: Report) -> str:
    """Test metrics by category of each column of `evaluate.by`, the largest first; may be empty."""
    blocks = []
    for column in dict.fromkeys(part.column for part in report.categories):
        parts = [part for part in report.categories if part.column == column]
        parts.sort(key=lambda part: -part.rows)
        lines = [
            f"| {_cell(column)} | test rows | R² | RMSE | MAE | bias |",
            "|:---|---:|---:|---:|---:|---:|",
        ]
        lines += [_category(part) for part in parts[:CATEGORIES_SHOWN]]
        if len(parts) > CATEGORIES_SHOWN:
            lines.append(f"| and {len(parts) - CATEGORIES_SHOWN} more | | | | | |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _category(part: Slice) -> str:
    errors = " | ".join(figure(value) for value in (part.rmse, part.mae, part.bias))
    return f"| {_cell(part.value)} | {part.rows:,} | {score(part.r2)} | {errors} |"


def _cells(metrics: Metrics) -> list[str]:
    errors = (metrics.rmse, metrics.mae, metrics.median_absolute_error)
    shown = [f"{metrics.rows:,}", score(metrics.r2), *(figure(value) for value in errors)]
    return [*shown, percent(metrics.mape)]


def _code(text: str) -> str:
    """A name as it is: no sign in it is markdown."""
    plain = " ".join(text.replace("`", "'").split())
    return f"`{plain}`"


def _cell(text: str) -> str:
    return _code(text.replace("|", "\\|"))

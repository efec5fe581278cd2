"""What the Prefect UI shows of a run: progress while it trains, then its metrics and a report."""

import base64
import re
import time
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException
from prefect.logging import get_run_logger

from tasks import comparison, description
from tasks.engine.config import Config
from tasks.engine.progress import Progress
from tasks.engine.secrets import without_secrets
from tasks.engine.workers import alive_workers
from tasks.figures import amount, duration
from tasks.pages import Page, Pages
from tasks.plots import small
from tasks.record import Findings, Logged
from tasks.tracking import Recorder

SHOWN_EVERY = 1.0  # seconds
DASHBOARD = "Dask dashboard"
ALT = {
    "learning_curve": "R² by boosting round",
    "predicted_actual": "Predicted against actual values of the test rows",
    "residuals": "Residuals of the test rows",
    "importance": "Share of the gain by feature",
}


@dataclass(frozen=True)
class Links:
    """Where else a run is looked at: its page in MLflow, and its Dask cluster's pages, which may
    stay when the run ends. Empty where no server shows them.
    """

    mlflow: str = ""
    dashboard: str = ""
    dashboard_stays: bool = False


def page_name(config: Config) -> str:
    """What the keys of the artifacts of a model begin with, as Prefect allows it: `houses`.

    The registered model's name, else the experiment's: artifacts of one key are versions of a page.
    """
    name = config.track.model or config.track.experiment
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "boostline"


def log_places(config: Config, recorder: Recorder, client: Any, links: Links) -> None:
    """Says in the flow's log where the run is recorded and where it computes."""
    log = get_run_logger()
    place = links.mlflow or f"{recorder.run_id} in {without_secrets(recorder.client.tracking_uri)}"
    log.info("MLflow run: %s", place)
    workers = alive_workers(client).values()
    threads = sum(int(worker["nthreads"]) for worker in workers)
    kind = config.cluster.kind
    log.info(
        "Cluster (%s): %s, %s", kind, amount(len(workers), "workers"), amount(threads, "threads")
    )
    if links.dashboard:
        log.info("%s: %s", DASHBOARD, links.dashboard)


class TrainingProgress:
    """Moves the artifact `NAME-progress` as it hears of rounds. May be told of every one."""

    def __init__(self, pages: Pages, name: str, dashboard: str) -> None:
        self._pages, self._key = pages, f"{name}-progress"
        self._link = f" · [{DASHBOARD}]({dashboard})" if dashboard else ""
        self._last: Progress | None = None
        self._began, self._first, self._shown = 0.0, 0, 0.0

    def hear(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.step != "train":
            if self._last is not None:  # early stopping leaves rounds undone
                self._put(100.0, f"{self._last.done:,} rounds trained{_note(self._last)}")
                self._last = None
            return
        if self._last is None:
            self._began, self._first = now, progress.done
        self._last = progress
        if now - self._shown < SHOWN_EVERY:
            return
        self._shown = now
        share = 100.0 * progress.done / max(1, progress.total)
        text = f"Round {progress.done:,} of {progress.total:,}{_note(progress)}"
        done = progress.done - self._first
        if done > 0:
            left = (progress.total - progress.done) * (now - self._began) / done
            text += f" · {duration(left)} left at most"
        self._put(share, text + self._link)

    def _put(self, share: float, text: str) -> None:
        self._pages.put(Page(self._key, "progress", round(share, 1), text))


def _note(progress: Progress) -> str:
    return f" · {progress.note}" if progress.note else ""


def show_results(
    pages: Pages, found: Findings, logged: Logged, recorder: Recorder, links: Links
) -> None:
    """The table `NAME-metrics` beside the last run and the champion, and the page `NAME-report`."""
    name = page_name(found.config)
    try:
        compared = comparison.compare(recorder.client, recorder.run_id, found.config.track.model)
    except (MlflowException, OSError) as error:
        get_run_logger().warning(
            "MLflow did not tell of earlier runs: %s", without_secrets(str(error))
        )
    else:
        headline = comparison.headline(compared)
        pages.put(Page(f"{name}-metrics", "table", comparison.rows(compared), headline))
        get_run_logger().info(headline)
    pages.put(
        Page(
            f"{name}-report",
            "markdown",
            report(found, logged, recorder, links),
            "What the run came to, with its plots",
        )
    )


def report(found: Findings, logged: Logged, recorder: Recorder, links: Links) -> str:
    """The report in markdown, its plots within it: they show wherever the page is looked at."""
    images = [f"![{ALT[name]}]({_data_uri(png)})" for name, png in logged.pictures.items()]
    notes = [*found.dataset.notes, *found.profile.notes, *found.trained.notes]
    return "\n\n".join(
        part
        for part in (
            description.result(found.config, found.trained, found.report),
            description.sides(found.report),
            "\n".join(_links(found, logged, recorder, links)),
            "\n".join(f"- {note}" for note in notes),
            *images,
            description.categories(found.report),
        )
        if part
    )


def _links(found: Findings, logged: Logged, recorder: Recorder, links: Links) -> list[str]:
    page = links.mlflow
    run = f"`{recorder.run_id}` in `{without_secrets(recorder.client.tracking_uri)}`"
    lines = [f"- MLflow: run {run}"]
    if page:
        lines = [
            f"- MLflow: [the run]({page}), "
            f"[its charts]({page}/model-metrics), [its plots and files]({page}/artifacts)"
        ]
    trained = f"- Trained on {description.made_by(found.trained)}"
    if links.dashboard and links.dashboard_stays:
        trained += f" ([{DASHBOARD}]({links.dashboard}))"
    model, version = found.config.track.model, logged.version
    known = f"version {version} of `{model}`, `{logged.model_uri}`" if version else ""
    return [
        *lines,
        f"- Model: {known or f'`{logged.model_uri}`'}, sha256 `{found.trained.model_sha256[:12]}`",
        f"- Data: {description.data(found.config, found.dataset, found.plan, found.profile)}",
        trained,
    ]


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(small(png)).decode()}"

"""The train flow: ingest, normalize, train, evaluate, record."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.catching_up import give_way_to_newer
from flows.places import aside, check_let_in, chosen, cluster_of, device_of, telemetry, tracking_of
from flows.standing import dashboard_of, in_place, mlflow_pages
from flows.states import cancelling
from infra.growing import at_full_size
from infra.prefect_server import EMBEDDED
from tasks.artifacts import Links, TrainingProgress, log_places, page_name, show_results
from tasks.description import NOTE, mlflow_page, without_result
from tasks.engine.config import Config
from tasks.engine.dates import dated, day_of
from tasks.engine.errors import UserError
from tasks.engine.home import Home, digest_of
from tasks.engine.progress import listening
from tasks.engine.report import Report
from tasks.engine.secrets import (
    check_by_reference,
    with_clean_errors,
    without_secrets,
)
from tasks.engine.summary import Seconds, Summary
from tasks.evaluate import evaluate_model
from tasks.history import Kept, keep_outcome
from tasks.ingest import ingest_table
from tasks.ledger import OtherTableError, RunFolder, State, under_way
from tasks.normalize import fit_scaler
from tasks.pages import Pages, pages_of
from tasks.record import (
    FLOW_RUN_URL,
    Findings,
    Logged,
    NotRecorded,
    begin,
    describe_data,
    example_of,
    not_taken,
    origin_here,
    record_run,
    rounds_to,
)
from tasks.system_metrics import system_metrics
from tasks.tracking import Recorder, Status, open_run
from tasks.train import train_model

KILLED_SECONDS = 5.0  # for what MLflow is still to be told of a run that ends otherwise


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `links` say where to look at it.

    `trained_rounds` were trained; early stopping may have kept fewer.
    """

    summary: Summary
    report: Report
    notes: tuple[str, ...]
    links: dict[str, tuple[str, ...]]
    trained_rounds: int


class Clock:
    """Wall time of the steps of a run, in seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._steps: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._steps[name] = time.monotonic() - began

    def seconds(self) -> Seconds:
        return Seconds(**self._steps, total=time.monotonic() - self._began)


def _run_name() -> str:
    """Of model, data and day: `houses · sales · 2026-11-24`."""
    given = flow_run.parameters
    config = Config.model_validate(given["config"])
    names = [config.track.model, _table(config), str(_day(config, given.get("date")))]
    return " · ".join(filter(None, names))


def _table(config: Config) -> str:
    """The last part of the source that says which table it is, on every day and in every file."""
    data = config.data
    if data.table:
        return data.table
    parts = Path(re.sub(r"\{[^}]*\}", "{}", data.shown.partition("?")[0])).parts
    named = [part for part in parts[::-1] if not re.search(r"\{\}|[*\[]|^/$|:$", part)]
    return named[0] if named else data.shown


def _day(config: Config, date: date | None) -> date:
    """The day that a run is about: the one it is given, or that of its schedule."""
    return date or day_of(flow_run.scheduled_start_time, config.data.timezone)


@flow(name="boostline-train", flow_run_name=_run_name, persist_result=False)
@with_clean_errors
def train_flow(config: Config, home: str | None = None, date: date | None = None) -> Outcome:
    """Trains a model and records it.

    Args:
        config: What is trained on which data, where, and how it is remembered.
        home: Where everything is kept. BOOSTLINE_HOME, or `.boostline` in the folder of the flow's
            process, without it.
        date: The day that dates in the source are reckoned from. Without it that on which the run
            was scheduled to start, however late it starts or starts again.
    """
    check_by_reference(config.data.source)
    give_way_to_newer()
    config = dated(config, _day(config, date))
    place = Home.at(home)
    config = in_place(config, place)
    cluster, choice = chosen(config.cluster)
    config = config.model_copy(update={"cluster": cluster})
    with cancelling(str(flow_run.id)):
        while True:
            try:
                return _trained(config, place, choice)
            except OtherTableError as changed:  # more than one run of the old table may have died
                get_run_logger().info("%s", changed)


def _trained(config: Config, place: Home, choice: Sequence[str]) -> Outcome:
    """Raises OtherTableError where it would go on in the recording of another table's model."""
    clock = Clock()
    with (
        recording(config, place) as (recorder, folder),
        cluster_of(config.cluster, place, config.data.source) as client,
        telemetry(client, device := device_of(client, config.cluster), recorder.metrics),
        system_metrics(recorder, client),
        shown(config, place, recorder, client) as (pages, links),
    ):
        for note in choice:
            recorder.tags({"cluster_choice": note})
        with clock.step("ingest"):
            dataset, plan = ingest_table(config, place, client)
        with clock.step("normalize"):
            dataset, profile = fit_scaler(config, dataset, plan, place, client, device)
        folder.settle(profile.dataset_digest)
        describe_data(recorder, dataset, plan, profile)
        # while what they are read from is there, and as it is
        example, origin = example_of(profile), origin_here()
        with clock.step("train"), at_full_size(client):
            trained = train_model(
                config, dataset, plan, profile, place, client, rounds_to(recorder), device
            )
        with clock.step("evaluate"):
            report = evaluate_model(config, dataset, plan, profile, trained, place, client)
        found = Findings(
            config=config,
            dataset=dataset,
            plan=plan,
            profile=profile,
            trained=trained,
            report=report,
            example=example,
            origin=origin,
        )
        with clock.step("record"):
            logged = record_run(found, recorder, folder)
        summary = _summary(found, logged, recorder, clock)
        show_results(pages, found, logged, recorder, links)
        notes = (*choice, *dataset.notes, *profile.notes, *aside(profile, place), *trained.notes)
        keep_outcome(recorder, Kept(summary=summary, notes=notes, trained_rounds=trained.rounds))
    return Outcome(
        summary=summary,
        report=report,
        notes=notes,
        links=_links(config, place, recorder, logged),
        trained_rounds=trained.rounds,
    )


@contextmanager
def shown(
    config: Config, home: Home, recorder: Recorder, client: Any
) -> Iterator[tuple[Pages, Links]]:
    """What Prefect's pages show of this run while it lasts; the log says where else to look."""
    address = without_secrets(mlflow_pages(home, recorder.client.tracking_uri))
    links = Links(
        mlflow=mlflow_page(recorder.client, recorder.run_id, address),
        dashboard=dashboard_of(config, home, client),
        dashboard_stays=config.cluster.kind == "address",
    )
    log_places(config, recorder, client, links)
    with pages_of(str(flow_run.id)) as pages:
        progress = TrainingProgress(pages, page_name(config), links.dashboard)
        with listening(progress.hear):
            yield pages, links


@contextmanager
def recording(config: Config, home: Home) -> Iterator[tuple[Recorder, RunFolder]]:
    """The MLflow run of this flow run, ended as the flow ends.

    A flow run that is tried again, or one that does again what a run did whose process died, goes
    on in the MLflow run of the first.

    Raises:
        RunError: MLflow does not answer, or has not taken everything at the end.
    """
    run_id = str(flow_run.id)
    key = digest_of(config.model_dump(mode="json", exclude={"cluster"}))
    with under_way(home, run_id, key) as folder:
        try:
            recorder = _recorder(config, home, folder)
        except BaseException as error:
            folder.give_back(_one_line(error), killed=not isinstance(error, Exception))
            raise
        try:
            yield recorder, folder
        except BaseException as error:
            # what is no Exception is a signal, Prefect's cancelling or Ctrl-C
            state: State = "failed" if isinstance(error, Exception) else "killed"
            status: Status = "FAILED" if state == "failed" else "KILLED"
            # who presses Ctrl-C, or cancels, wants the workers back; and where MLflow did not take
            # all of a trained model, it was waited for already
            at_once = isinstance(error, NotRecorded) or not isinstance(error, Exception)
            limit = KILLED_SECONDS if at_once else None
            taken = False
            with suppress(OSError, UserError):  # a full disk, which may be the error itself
                recorder.tags(
                    {"cause": _one_line(error), NOTE: without_result(config, _one_line(error))}
                )
            with suppress(OSError, UserError):
                taken = recorder.close(status, min(config.track.timeout, 60.0), limit).complete
            # what was trained waits to be recorded, be it of the run that this one went on in
            recorded = taken and not folder.is_trained
            with suppress(OSError, UserError):
                folder.update(state=state, cause=_one_line(error), recorded=recorded)
            raise
        ended = recorder.close("FINISHED", config.track.timeout)
        folder.update(state="finished" if ended.complete else "failed", recorded=ended.complete)
        if not ended.complete:
            raise not_taken(ended, folder, config)


def _recorder(config: Config, home: Home, folder: RunFolder) -> Recorder:
    """Of the run of an earlier try in this folder, where MLflow still has it; else of a new one."""
    uri = tracking_of(config.track.experiment, home)
    place = without_secrets(uri)
    tags = {"prefect.flow_run_id": str(flow_run.id), FLOW_RUN_URL: _flow_run_url()}
    earlier = folder.entry.mlflow_run_id if folder.entry.tracking_uri == place else None
    try:
        recorder = open_run(
            uri,
            config.track.experiment,
            config.track.run_name or str(flow_run.name),
            tags,
            folder.spool,
            earlier,
            timeout=config.track.timeout,
            renewed=True,
        )
    except MlflowException as error:
        check_let_in(error, uri)
        raise
    folder.update(mlflow_run_id=recorder.run_id, tracking_uri=place)
    try:
        begin(recorder, config, tags, goes_on=recorder.run_id == earlier)
    except BaseException as error:
        status: Status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with suppress(OSError, UserError):  # a full disk, which may be the error itself
            recorder.close(status, limit=KILLED_SECONDS)
        raise
    return recorder


def _flow_run_url() -> str:
    """The run's page in Prefect; none of the embedded server, which ends with the command."""
    return "" if os.environ.get(EMBEDDED) else without_secrets(str(flow_run.ui_url or ""))


def _one_line(error: BaseException) -> str:
    return " ".join(without_secrets(str(error)).split()) or type(error).__name__


def _summary(found: Findings, logged: Logged, recorder: Recorder, clock: Clock) -> Summary:
    test, trained = found.report.metrics["test"], found.trained
    return Summary(
        r2=test.r2,
        rmse=test.rmse,
        mae=test.mae,
        rows=found.profile.rows,
        rounds=trained.best_rounds,
        model_sha256=trained.model_sha256,
        dataset_digest=found.profile.dataset_digest,
        mlflow_run_id=recorder.run_id,
        model_uri=logged.model_uri,
        flow_run_id=str(flow_run.id),
        device=trained.device,
        workers=trained.workers,
        resumed_from_round=trained.resumed_from_round,
        recoveries=trained.recoveries,
        seconds=clock.seconds(),
    )


def _links(
    config: Config, home: Home, recorder: Recorder, logged: Logged
) -> dict[str, tuple[str, ...]]:
    """What to show behind each label, a line each: where the run is, and how to look at it."""
    uri = recorder.client.tracking_uri
    look = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else uri
    if pages := mlflow_pages(home, uri):
        look = f"{pages}/#/runs/{recorder.run_id}"
    links: dict[str, tuple[str, ...]] = {}
    if logged.version:
        links["Version"] = (f"{config.track.model}/{logged.version}",)
    experiment = f"experiment {config.track.experiment!r}"
    links["MLflow"] = (f"run {recorder.run_id}, {experiment}", without_secrets(look))
    folder = os.environ.get(EMBEDDED)
    look = f"PREFECT_HOME={folder} prefect server start" if folder else str(flow_run.ui_url)
    links["Prefect"] = (f"flow run {flow_run.id}, {flow_run.name!r}", without_secrets(look))
    return links

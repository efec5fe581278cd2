"""The train flow: ingest, normalize, train, evaluate, record."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.places import cluster_of, tracking_of
from tasks.artifacts import show_results
from tasks.engine.config import Config
from tasks.engine.home import Home
from tasks.engine.report import Report
from tasks.engine.summary import Seconds, Summary
from tasks.evaluate import evaluate_model
from tasks.ingest import ingest_table
from tasks.normalize import fit_scaler
from tasks.record import Logged, begin, describe_data, record_model
from tasks.tracking import Recorder, open_run
from tasks.train import Trained, train_model


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `links` say where to look at it; `best_round` is None where all count."""

    summary: Summary
    report: Report
    notes: tuple[str, ...]
    links: dict[str, str]
    best_round: int | None


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
    config = flow_run.parameters["config"]
    data = config.data if isinstance(config, Config) else Config.model_validate(config).data
    table = Path(data.source.rstrip("/")).name or data.source
    return f"{table} · {datetime.now(UTC):%Y-%m-%d %H:%M}"


@flow(name="boostline-train", flow_run_name=_run_name, persist_result=False)
def train_flow(config: Config, home: str) -> Outcome:
    """Trains a model as `config` says and records it. `home` is BOOSTLINE_HOME."""
    clock, place = Clock(), Home(home)
    with cluster_of(config.cluster, place) as client, recording(config, place) as recorder:
        with clock.step("ingest"):
            dataset, plan = ingest_table(config, place, client)
        with clock.step("normalize"):
            dataset, profile = fit_scaler(config, dataset, plan, place, client)
        describe_data(recorder, dataset, plan, profile)
        with clock.step("train"):
            trained = train_model(
                config, dataset, plan, profile, place, client, on_round=_to(recorder)
            )
        with clock.step("evaluate"):
            report = evaluate_model(config, dataset, plan, profile, trained, place, client)
        with clock.step("record"):
            logged = record_model(config, dataset, plan, profile, trained, report, recorder)
        summary = _summary(profile.rows, trained, report, logged, recorder, clock, dataset.digest)
        show_results(report, summary, recorder)
    notes = (*dataset.notes, *profile.notes, *trained.notes)
    return Outcome(
        summary=summary,
        report=report,
        notes=notes,
        links=_links(config, place, recorder, logged),
        best_round=trained.best_rounds if trained.best_rounds < trained.rounds else None,
    )


@contextmanager
def recording(config: Config, home: Home) -> Iterator[Recorder]:
    """The MLflow run of this flow run; a flow run that is tried again goes on in the same one."""
    uri = tracking_of(config, home)
    run_id = str(flow_run.id)
    tags = {"prefect.flow_run_id": run_id, "prefect.flow_run_url": str(flow_run.ui_url or "")}
    with open_run(
        uri,
        config.track.experiment,
        config.track.run_name or str(flow_run.name),
        tags,
        home.local / "runs" / run_id / "spool",
    ) as recorder:
        begin(recorder, config, tags)
        yield recorder


def _to(recorder: Recorder) -> Any:
    def on_round(round_: int, metrics: dict[str, float]) -> None:
        recorder.metrics({f"round/{name}": value for name, value in metrics.items()}, round_)

    return on_round


def _summary(
    rows: Any,
    trained: Trained,
    report: Report,
    logged: Logged,
    recorder: Recorder,
    clock: Clock,
    digest: str | None,
) -> Summary:
    test = report.metrics["test"]
    return Summary(
        r2=test.r2,
        rmse=test.rmse,
        mae=test.mae,
        rows=rows,
        rounds=trained.best_rounds,
        model_sha256=trained.model_sha256,
        dataset_digest=str(digest),
        mlflow_run_id=recorder.run_id,
        model_uri=logged.model_uri,
        flow_run_id=str(flow_run.id),
        device=trained.device,
        workers=trained.workers,
        resumed_from_round=trained.resumed_from_round,
        recoveries=trained.recoveries,
        seconds=clock.seconds(),
    )


def _links(config: Config, home: Home, recorder: Recorder, logged: Logged) -> dict[str, str]:
    uri = recorder.client.tracking_uri
    links = {}
    if logged.version:
        links["Registered"] = f"{config.track.model}, version {logged.version}"
    where = f"run {recorder.run_id} in the experiment {config.track.experiment!r}"
    if uri.startswith("sqlite"):
        links["MLflow"] = f"{where}: mlflow ui --backend-store-uri {uri}"
    else:
        links["MLflow"] = f"{where} at {uri}"
    links["Prefect"] = f"flow run {flow_run.name!r} ({flow_run.id})"
    return links

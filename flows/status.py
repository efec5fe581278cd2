"""`boostline status`: the services of a home, what runs, and what ran last."""

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel

from flows.reach import read, status
from flows.standing import UP, mlflow_of, prefect_of
from infra.prefect_worker import online
from infra.services import Services, running
from tasks.engine.home import Home
from tasks.engine.report import Report
from tasks.engine.secrets import without_secrets
from tasks.figures import duration, score
from tasks.ledger import FINDINGS, Entry, entries, is_alive, read_entry


class _Found(BaseModel):
    """The one part of `tasks.record.Findings` that is shown here, without what that imports."""

    report: Report


@dataclass(frozen=True)
class Line:
    """One thing and how it stands; `well` is False for a service that does not answer."""

    what: str
    state: str
    well: bool = True


def look(home: Home) -> list[Line]:
    """Asks every service that commands in this home use, and the home for its runs."""
    services = running(home.local)
    return [
        Line("Home", home.root),
        Line("Services", _services(services)),
        _prefect(home),
        _mlflow(home),
        *_cluster(services),
        *_runs(home),
    ]


def _services(services: Services | None) -> str:
    if services is None:
        return "none stand: each run starts its own. boostline up starts some that stay"
    since = f"process {services.pid}, since {services.started[:16].replace('T', ' ')} UTC"
    if not services.ready:
        return f"boostline up is starting ({since})"
    store = f", database {services.database}" if services.database else ""
    return f"of boostline up ({since}){store}"


def _prefect(home: Home) -> Line:
    api, origin = prefect_of(home)
    if not api:
        return Line("Prefect", "a run's own, while it lasts")
    shown = _shown(api.removesuffix("/api"), origin)
    if status(f"{api.rstrip('/')}/health") is None:
        return Line("Prefect", f"{shown} does not answer", False)
    return Line(
        "Prefect", f"{shown}, version {read(api.rstrip('/') + '/admin/version') or 'not told'}"
    )


def _mlflow(home: Home) -> Line:
    uri, origin = mlflow_of(home)
    if not uri:
        file = home.local / "mlflow.db"
        return Line("MLflow", f"the file {file}" if file.exists() else "no runs yet")
    shown = _shown(uri, origin)
    if not uri.startswith("http"):
        return Line("MLflow", shown)
    base = uri.rstrip("/")
    if status(f"{base}/health") is None:
        return Line("MLflow", f"{shown} does not answer", False)
    return Line("MLflow", f"{shown}, version {read(f'{base}/version') or 'not told'}")


def _cluster(services: Services | None) -> Iterator[Line]:
    if services is None or not services.ready:
        return
    if services.dashboard:
        identity = read(services.dashboard.removesuffix("/status") + "/json/identity.json")
        if isinstance(identity, dict):
            version = importlib.metadata.version("distributed")
            workers = len(identity.get("workers", {}))
            yield Line("Dask", f"{services.dashboard}, version {version}, {workers} workers")
        else:
            yield Line("Dask", f"{services.dashboard} does not answer", False)
    if services.pool:
        there = bool(online(services.prefect, services.pool))
        state = "online" if there else "not online"
        yield Line("Worker", f"work pool {services.pool!r}, {state}", there)


def _shown(address: str, origin: str) -> str:
    shown = without_secrets(address)
    return shown if origin == UP else f"{shown} ({origin})"


def _runs(home: Home) -> Iterator[Line]:
    known = entries(home)
    alive = [entry for entry in known if entry.state == "running" and is_alive(home, entry)]
    if not alive:
        yield Line("Running", "nothing")
    for entry in alive:
        lasts = datetime.now(UTC) - datetime.fromisoformat(entry.started)
        yield Line("Running", f"{_named(entry)}, for {duration(lasts.total_seconds())}")
    last = next((entry for entry in known if entry not in alive), None)
    if last is None:
        yield Line("Last run", "none yet")
        return
    died = last.state == "running"
    state = "crashed" if died else last.state
    found = read_entry(home, last, FINDINGS, _Found)
    r2 = f", test R² {score(found.report.metrics['test'].r2)}" if found else ""
    started = f"started {last.started[:16].replace('T', ' ')} UTC"
    yield Line("Last run", f"{_named(last)}: {state}, {started}{r2 if state == 'finished' else ''}")
    if last.cause and state != "finished":
        yield Line("", last.cause)
    if not last.recorded and not died:
        yield Line("", "MLflow has not taken all of it: boostline record")


def _named(entry: Entry) -> str:
    if entry.mlflow_run_id:
        return f"MLflow run {entry.mlflow_run_id[:8]}"
    return f"flow run {entry.flow_run_id[:8]}"

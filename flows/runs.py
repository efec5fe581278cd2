"""`boostline runs` and `boostline show`: what MLflow remembers, at the terminal."""

import os
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.places import check_let_in, store_of
from flows.results import labelled, model_lines, one_line, show_notes, show_report
from flows.standing import mlflow_pages, standing, use_services
from tasks.engine.errors import RunError
from tasks.engine.home import Home
from tasks.engine.secrets import without_secrets
from tasks.figures import amount, duration, score
from tasks.history import Page, Remembered, find_run, last_runs, read_run
from tasks.ledger import Entry, entries, is_alive

T = TypeVar("T")

WIDE = 250  # columns for a pipe: nothing is cut that another program may look for


def list_runs(console: Console, home: Home, experiment: str | None, limit: int) -> None:
    """A table of the last runs, the newest first.

    Raises:
        UserError: there is no such experiment, or MLflow does not let this user in.
        RunError: MLflow does not answer.
    """
    uri = _tracking(home)
    found = _asked(uri, lambda client: last_runs(client, experiment, limit)) if uri else []
    if not found:
        where = without_secrets(uri) if uri else str(home.local)
        console.print(Text(f"No runs yet in {where}: `boostline train` makes one."), soft_wrap=True)
        return
    known = _ledger(home)
    table = _table([_truly(run, known) for run in found])
    console.print(table, width=None if console.is_terminal else WIDE)
    console.print()
    console.print(Text("boostline show RUN prints one: by run, name, or `last`."))


def show_run(console: Console, home: Home, wanted: str) -> None:
    """One run as `train` showed it, with where it is and what was set. Raises as `list_runs`."""
    uri = _tracking(home)
    if not uri:
        raise RunError(f"No runs yet in {home.local}: `boostline train` makes one.")
    page = _asked(uri, lambda client: read_run(client, find_run(client, wanted)))
    line = _truly(page.line, _ledger(home))
    console.print()
    labelled(console, {"Run": line.name, "State": _state(line)})
    if line.cause and line.state != "finished":
        labelled(console, {"Cause": line.cause})
    if page.report:
        show_report(console, page.report)
    show_notes(console, page.kept.notes if page.kept else ())
    console.print()
    _show_model(console, page, line)
    _show_links(console, page, line, uri, home)
    for number, (key, value) in enumerate(page.settings.items()):
        labelled(console, {"Set" if number == 0 else "": f"{key} = {value}"})


def _tracking(home: Home) -> str:
    """The tracking URI; empty where there is no store yet, which looking does not make."""
    use_services(home)
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home.local / "mlflow.db").exists():
        return ""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return store_of(home)


def _asked(uri: str, question: Callable[[MlflowClient], T]) -> T:
    try:
        return question(MlflowClient(tracking_uri=uri, registry_uri=uri))
    except MlflowException as error:
        check_let_in(error, uri)
        raise RunError(
            f"MLflow at {without_secrets(uri)} does not answer: {_first_line(error)} Start it, or "
            "see `boostline doctor`."
        ) from error


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0]
    return line if line.endswith(".") else f"{line}."


def _ledger(home: Home) -> dict[str, tuple[Entry, bool]]:
    """By MLflow run: what this home knows of it, and whether its process is gone."""
    return {
        entry.mlflow_run_id: (entry, entry.state == "running" and not is_alive(home, entry))
        for entry in entries(home)
        if entry.mlflow_run_id
    }


def _truly(line: Remembered, known: dict[str, tuple[Entry, bool]]) -> Remembered:
    """The line with the state that MLflow was not told of: its process died, or was interrupted."""
    entry, gone = known.get(line.run_id, (None, False))
    if entry is None:
        return line
    state = line.state
    if gone or (entry.state == "crashed" and state != "finished"):
        state = "crashed"
    elif state == "running" and entry.state in ("failed", "killed"):
        state = entry.state
    return line.model_copy(
        update={
            "state": state,
            "cause": line.cause or entry.cause,
        }
    )


def _table(lines: list[Remembered]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("run", "when (UTC)", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("test R²", "rows", "duration"):
        table.add_column(heading, justify="right", no_wrap=True)
    several = len({line.experiment for line in lines}) > 1
    versioned = any(line.version for line in lines)
    for heading in [*["version"] * versioned, *["experiment"] * several]:
        table.add_column(heading, no_wrap=True)
    table.add_column("name")
    for line in lines:
        style = None if line.state in ("finished", "running") else "red"
        cells: list[str | Text] = [
            line.run_id[:8],
            _shortly(line.started),
            Text(line.state, style=style or ""),
            score(line.r2) if line.r2 is not None else "–",
            f"{line.rows:,}" if line.rows is not None else "–",
            _lasted(line),
            *[line.version or "–"] * versioned,
            *[Text(line.experiment)] * several,
            one_line(line.name.removesuffix(f" · {_when(line.started)}")),
        ]
        table.add_row(*cells)
    return table


def _when(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M}"


def _shortly(milliseconds: int) -> str:
    """With the day, or, of another year, the date alone: tables have little room."""
    when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    this_year = when.year == datetime.now(UTC).year
    return f"{when:%b %d %H:%M}" if this_year else f"{when:%Y-%m-%d}"


def _lasted(line: Remembered) -> str:
    ended = line.ended if line.ended is not None else int(time.time() * 1000)
    if line.ended is None and line.state != "running":
        return "–"
    return duration((ended - line.started) / 1000)


def _state(line: Remembered) -> str:
    lasted = _lasted(line)
    after = {"running": f", for {lasted}", "finished": f", {lasted}"}.get(
        line.state, f", after {lasted}" if lasted != "–" else ""
    )
    return f"{line.state}, started {_when(line.started)} UTC{after}"


def _show_model(console: Console, page: Page, line: Remembered) -> None:
    if page.model_uri:
        labelled(console, {"Model": page.model_uri})
    if page.kept:
        for text in model_lines(page.kept.summary, page.kept.trained_rounds):
            labelled(console, {"": text})
    if line.version:
        labelled(console, {"Version": line.version})
    digest = page.tags.get("dataset_digest", "")
    if line.rows is not None:
        labelled(console, {"Data": f"{amount(line.rows, 'rows')}, digest {digest}"})
    if revision := page.tags.get("code_revision"):
        labelled(console, {"Code": revision})


def _show_links(console: Console, page: Page, line: Remembered, uri: str, home: Home) -> None:
    pages = mlflow_pages(home, uri)
    look = f"{pages}/#/runs/{line.run_id}" if pages else f"mlflow ui --backend-store-uri {uri}"
    _lines(
        console,
        "MLflow",
        [f"run {line.run_id}, experiment {line.experiment!r}", without_secrets(look)],
    )
    if flow_run := page.tags.get("prefect.flow_run_id"):
        there = page.tags.get("prefect.flow_run_url", "")
        _lines(console, "Prefect", [f"flow run {flow_run}", _flow_page(flow_run, there, home)])


def _flow_page(flow_run: str, there: str, home: Home) -> str:
    """Where to see a flow run: the page that it had may have been that of a command's own server,
    whose database a standing one of the home shows."""
    services = standing(home)
    if services and not services.database:
        return f"{services.pages}/flow-runs/flow-run/{flow_run}"
    api = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    if (api and there.startswith(api)) or not (home.local / "prefect" / "prefect.db").exists():
        return there
    return f"PREFECT_HOME={home.local / 'prefect'} prefect server start"


def _lines(console: Console, label: str, texts: Iterable[str]) -> None:
    for number, text in enumerate(texts):
        labelled(console, {label if number == 0 else "": text})

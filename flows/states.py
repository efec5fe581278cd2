"""True states of flow runs: of those whose process died, and of the one that is being cancelled."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from tasks.engine.home import Home
from tasks.ledger import RunFolder, dead, entries

POLL_SECONDS = 2.0
DIED = "Its process died before the run had ended."
INTERRUPTED = "Interrupted by its user."

_ENDED = {StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED}


def settle(home: Home) -> list[RunFolder]:
    """Tells Prefect and MLflow of the runs whose process died without a word.

    Only those of this home, whose lock nobody holds; a run that lives is never touched.
    """
    settled = []
    for folder in dead(home):
        _set_state(folder.entry.flow_run_id, Crashed(message=DIED))
        _fail_in_mlflow(folder, home)
        folder.update(state="crashed", cause=DIED)
        settled.append(folder)
    return settled


def _fail_in_mlflow(folder: RunFolder, home: Home) -> None:
    from mlflow.exceptions import MlflowException

    from flows.places import store_of
    from tasks.engine.secrets import without_secrets
    from tasks.tracking_store import tracking_client

    uri = store_of(home)
    if folder.entry.mlflow_run_id is None or folder.entry.tracking_uri != without_secrets(uri):
        return
    try:
        client = tracking_client(uri)
        client.set_tag(folder.entry.mlflow_run_id, "cause", DIED)
        client.set_terminated(folder.entry.mlflow_run_id, "FAILED")
    except (MlflowException, OSError):
        # it is told again by whoever goes on with the run, or finishes its recording
        return


def _set_state(flow_run_id: str, state: State[Any]) -> None:
    """Sets the state of a flow run that has not ended; one that the server does not know stays."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(flow_run_id))
        except ObjectNotFound:
            return
        if run.state is None or run.state.type not in _ENDED:
            client.set_flow_run_state(run.id, state, force=True)


def set_cancelled(home: Home) -> None:
    """A run of this process that was interrupted is cancelled; Prefect would call it a crash."""
    for entry in entries(home):
        if entry.pid == os.getpid() and entry.state == "killed":
            # a server that is gone is not waited for by who has pressed Ctrl-C
            with suppress(httpx.TransportError), get_client(sync_client=True) as client:
                client.set_flow_run_state(
                    UUID(entry.flow_run_id), Cancelled(message=INTERRUPTED), force=True
                )
            return


@contextmanager
def cancelling(flow_run_id: str) -> Iterator[None]:
    """While the block runs, cancelling the flow run in Prefect interrupts this process.

    A run from the command line has no runner of Prefect's to do that.
    """
    if os.environ.get("PREFECT__FLOW_RUN_ID"):
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(flow_run_id, ended), name="watch-cancelling", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(timeout=POLL_SECONDS)


def _watch(flow_run_id: str, ended: threading.Event) -> None:
    with get_client(sync_client=True) as client:
        while not ended.wait(POLL_SECONDS):
            try:
                run = client.read_flow_run(UUID(flow_run_id))
            except (httpx.HTTPError, ObjectNotFound):
                continue
            wanted = run.state.type if run.state else None
            if wanted in (StateType.CANCELLING, StateType.CANCELLED) and not ended.is_set():
                os.kill(os.getpid(), signal.SIGINT)
                return

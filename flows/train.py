"""Training from the command line: services first, then the flow in this process."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flows.standing import use_services
from infra.mlflow_store import MlflowStoreError, prepare_mlflow, quiet_mlflow
from infra.prefect_server import PrefectServerError, start_embedded_prefect
from tasks.engine.config import Config
from tasks.engine.errors import RunError
from tasks.engine.home import Home
from tasks.engine.progress import Progress, reporter
from tasks.engine.secrets import clean_logs

DRAIN_SECONDS = 5

if TYPE_CHECKING:
    from flows.pipeline import Outcome


def run(config: Config, home: Home, verbose: bool = False) -> "Outcome":
    """The whole flow, with the embedded Prefect server where none is configured.

    Raises:
        UserError: the input is wrong.
        RunError: a service or the cluster did not come up, or was lost.
    """
    reporter()(Progress("start", 0, 0, "", use_services(home)))
    try:
        with (
            start_embedded_prefect(home.local) as server,
            ThreadPoolExecutor(max_workers=1) as beside,
            clean_logs(),
        ):
            store = beside.submit(prepare_mlflow, home.local)
            # Prefect reads its settings when it is imported
            os.environ.update(server.environment(verbose=verbose))
            os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
            from prefect import tags

            from flows.pipeline import train_flow
            from flows.states import settle, watch_silent_runs

            quiet_mlflow()
            store.result()
            server.wait()
            watched = () if server.embedded else watch_silent_runs()
            settle(home)
            with tags(*watched), server.flow_settings(), _told_to_the_end(), _interruptible(home):
                return train_flow(config, home.root)
    except (PrefectServerError, MlflowStoreError) as error:
        raise RunError(str(error)) from error


@contextmanager
def _told_to_the_end() -> Iterator[None]:
    """Sends what Prefect's threads still hold, as long as the server is there to take it.

    Left to themselves they would try for minutes at the end of the process.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    try:
        yield
    finally:
        for service in (APILogWorker, EventsWorker):
            service.drain_all(timeout=DRAIN_SECONDS, at_exit=False)


@contextmanager
def _interruptible(home: Home) -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does; both are told to Prefect as what they are."""
    from flows.states import set_cancelled

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        set_cancelled(home)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)

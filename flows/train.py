"""Training from the command line: services first, then the flow in this process."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date
from typing import TYPE_CHECKING

from dask.system import CPU_COUNT

from flows.places import begin_cluster
from flows.standing import use_services
from infra.mlflow_store import MlflowStoreError, prepare_mlflow, quiet_mlflow
from infra.prefect_server import PrefectServerError, start_embedded_prefect
from tasks.engine.config import Config
from tasks.engine.errors import RunError
from tasks.engine.home import Home
from tasks.engine.progress import Progress, reporter
from tasks.engine.secrets import clean_logs
from tasks.ledger import dead

DRAIN_SECONDS = 5
BUSY_PROCESSORS = 2  # while the server starts and this process imports
# Whether threads of Prefect's hold what its server does not take: they would not let us end.
unsent = threading.Event()

if TYPE_CHECKING:
    from flows.pipeline import Outcome


def run(config: Config, home: Home, day: date, verbose: bool = False) -> "Outcome":
    """The whole flow, with the embedded Prefect server where none is configured.

    `day` is what dates in the source are reckoned from.

    Raises:
        UserError: the input is wrong.
        RunError: a service or the cluster did not come up, or was lost for good.
    """
    reporter()(Progress("start", 0, 0, "", use_services(home)))
    try:
        with (
            start_embedded_prefect(home.local) as server,
            ThreadPoolExecutor(max_workers=1) as beside,
            clean_logs(),
        ):
            if CPU_COUNT > BUSY_PROCESSORS:
                begin_cluster(config.cluster, config.data.source)
            store = beside.submit(prepare_mlflow, home.local)
            # Prefect reads its settings when it is imported
            os.environ.update(server.environment(verbose=verbose))
            os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
            from httpx import TransportError
            from prefect import tags

            from flows.automations import watch_this_run
            from flows.pipeline import train_flow
            from flows.states import settle

            begin_cluster(config.cluster, config.data.source)
            quiet_mlflow()
            if store.result().startswith("sqlite"):
                # MLflow loads it with the first client, when nothing else is left to wait for
                import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
            server.wait()
            watched = () if server.embedded else watch_this_run()
            settle(home)
            with tags(*watched), server.flow_settings(), _told_to_the_end(), _interruptible(home):
                try:
                    return train_flow(config, home.root, day)
                except TransportError as error:
                    raise RunError(server.lost()) from error
    except (PrefectServerError, MlflowStoreError) as error:
        raise RunError(str(error)) from error


def settle_left(home: Home) -> None:
    """Runs whose process died are told as such by the next command, whichever that is.

    A standing server of the user's notices by itself; one of our own has to be there for it.
    """
    if os.environ.get("PREFECT_API_URL") or not any(True for _ in dead(home)):
        return
    quiet_mlflow()
    # what can't be told now is told by the next command that can
    with suppress(PrefectServerError), start_embedded_prefect(home.local, ui=False) as server:
        os.environ.update(server.environment())
        server.wait()
        from flows.states import settle

        settle(home)


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
            ended = service.drain_all(timeout=DRAIN_SECONDS, at_exit=False)
            if isinstance(ended, tuple) and ended[1]:
                unsent.set()


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

"""`boostline up`: the services of a home, until Ctrl-C."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from flows.figures import amount, duration
from flows.places import AHEAD
from infra.cluster_plan import ClusterError
from infra.mlflow_store import MlflowStoreError
from infra.postgres import Database, PostgresError, open_database
from infra.prefect_server import PrefectServerError
from infra.service_process import ServiceError
from infra.services import Services, ServicesUpError, claimed
from infra.up import Plan, Ports, PortsTakenError, Up, open_services
from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.errors import RunError, UserError
from tasks.engine.home import Home
from tasks.engine.secrets import redact, resolved, without_secrets
from tasks.ledger import entries, is_alive

CHECK_SECONDS = 1.0


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for: see its help."""

    ports: Ports
    dask: bool
    pool: str | None
    postgres: str | None
    timeout: float


class _Ended(KeyboardInterrupt):
    """The user, or the system, wants the services stopped."""


def run(wanted: Wanted, cluster: ClusterConfig, home: Home, console: Console) -> None:
    """Starts the services, says where they are, and stops them when it is told to.

    Raises:
        UserError: they are up already, a port is taken, or the database can't be used.
        RunError: one of them did not come up, or ended by itself.
    """
    home.prepare()
    if cluster.kind != "local":
        raise UserError(
            f"cluster.kind={cluster.kind!r} has no meaning for up, which starts a cluster of its "
            "own. Use --no-dask beside another one."
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with _until_told(), claimed(home.local, now) as claim:
            plan = _plan(wanted, cluster, home)
            _say(console, f"Starting in {home.local} (at most {wanted.timeout:g} s each) …")
            with open_services(plan, claim, _teller(console)) as up:
                _show(console, up.services, home)
                try:
                    _stay(up)
                except _Ended:
                    _warn_of_runs(console, home)
                    raise
    except ServicesUpError as error:
        raise UserError(_up_already(error.services, home)) from None
    except PortsTakenError as error:
        raise UserError(str(error)) from None
    except PostgresError as error:
        raise UserError(f"--postgres {redact(wanted.postgres or '')!r}: {error}.") from None
    except (ServiceError, PrefectServerError, MlflowStoreError, ClusterError) as error:
        raise RunError(f"{error}\nThe other services are stopped.") from error
    except _Ended:
        _say(console, "Stopped.")


def _plan(wanted: Wanted, cluster: ClusterConfig, home: Home) -> Plan:
    from infra.cluster import open_cluster

    ports = wanted.ports.free(dask=wanted.dask)
    database: Database | None = None
    if wanted.postgres:
        database = open_database(resolved(wanted.postgres))

    def open_dask() -> AbstractContextManager[Any]:
        return open_cluster(
            kind="local",
            workers=cluster.workers,
            threads=cluster.threads,
            memory_limit=cluster.memory_limit or "auto",
            local_directory=home.local / "dask",
            dashboard=True,
            dashboard_port=ports.dashboard,
            start_timeout_s=wanted.timeout,
            worker_ttl_s=cluster.worker_ttl,
            imports=AHEAD,
        )

    return Plan(
        home=home.local,
        variables={"BOOSTLINE_HOME": home.root},
        folder=Path.cwd(),
        ports=ports,
        database=database,
        cluster=open_dask if wanted.dask else None,
        pool=wanted.pool,
        timeout_s=wanted.timeout,
    )


@contextmanager
def _until_told() -> Iterator[None]:
    """Within the block the first Ctrl-C, SIGTERM or SIGHUP raises _Ended; more do nothing.

    What is being stopped then is stopped whole: its limits are some seconds each.
    """
    told = threading.Event()

    def end(signum: int, frame: object) -> None:
        if not told.is_set():
            told.set()
            raise _Ended

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, end) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _stay(up: Up) -> None:
    never = threading.Event()
    while not never.wait(CHECK_SECONDS):
        up.check()


def _teller(console: Console) -> Any:
    def tell(name: str, where: str, seconds: float) -> None:
        _say(console, f"✓ {name:<9} {where:<40} {duration(seconds):>9}")

    return tell


def _show(console: Console, services: Services, home: Home) -> None:
    """What to do with them, and what stands in the way."""
    exports = f"PREFECT_API_URL={services.prefect} MLFLOW_TRACKING_URI={services.mlflow}"
    where = f"The database is {services.database}; artifacts" if services.database else "All"
    _say(
        console,
        "",
        f"Commands in this home ({home.root}) use them by themselves. For others:",
        "",
        f"  export {exports}",
        "",
        f"{where} are kept in {home.local}, logs in mlflow-server.log, prefect/ and dask/ there.",
        "Ctrl-C stops all of them.",
    )
    for name, ours in (
        ("PREFECT_API_URL", services.prefect),
        ("MLFLOW_TRACKING_URI", services.mlflow),
    ):
        other = os.environ.get(name, "")
        if other not in ("", ours):
            _say(
                console,
                f"! {name} is {without_secrets(other)} in this shell: commands that see it go "
                f"there, not to these services. Take it away with: unset {name}",
            )


def _warn_of_runs(console: Console, home: Home) -> None:
    runs = [entry for entry in entries(home) if entry.state == "running" and is_alive(home, entry)]
    _say(console, "Stopping …")
    if runs:
        _say(
            console,
            f"! {amount(len(runs), 'runs')} under way in this home may end with them. The same "
            "command goes on from the last checkpoint.",
        )


def _up_already(services: Services | None, home: Home) -> str:
    """Who has the services of a home, where they are, and how to be rid of them."""
    if services is None:
        return f"Another `boostline up` is starting or stopping in {home.local}. Try again."
    who = f"process {services.pid} on {services.host}, since {services.started}"
    if not services.ready:
        return f"Another `boostline up` is starting in {home.local} ({who}). Try again later."
    places = f"Prefect {services.pages}, MLflow {services.mlflow}"
    places += f", Dask {services.dashboard}" if services.dashboard else ""
    return (
        f"The services of {home.local} are up already ({who}): {places}. "
        f"Stop them with Ctrl-C there, or with: kill {services.pid}"
    )


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(Text(line.rstrip()), soft_wrap=True)

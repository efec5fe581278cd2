"""What `boostline up` starts for a home, each on loopback, and how all of it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import psutil

from infra.asking import LOOPBACK
from infra.mlflow_server import start_mlflow
from infra.mlflow_store import prepare_store
from infra.postgres import Database
from infra.prefect_server import EMBEDDED, start_standing_prefect
from infra.prefect_worker import start_worker
from infra.service_process import ServiceError, ServiceProcess
from infra.services import Claim, Services

if TYPE_CHECKING:
    from distributed import Client

Tell = Callable[[str, str, float], None]


class PortsTakenError(RuntimeError):
    """Ports that other programs listen on: a sentence for each."""


@dataclass(frozen=True)
class Ports:
    """Ports on loopback; 0 for a free one."""

    prefect: int = 4200
    mlflow: int = 5000
    dashboard: int = 8787

    OPTIONS: ClassVar = {
        "prefect": "--prefect-port",
        "mlflow": "--mlflow-port",
        "dashboard": "--dask-port",
    }

    def free(self, *, dask: bool) -> Ports:
        """The same with a port for each 0.

        Raises:
            PortsTakenError: some are in use; names who listens there, where that can be seen.
        """
        names = ["prefect", "mlflow", *(["dashboard"] if dask else [])]
        found: dict[str, int] = {}
        taken = []
        with ExitStack() as held:
            for name in names:
                wanted = getattr(self, name)
                probe = held.enter_context(socket.socket())
                if wanted in found.values():
                    taken.append((wanted, self.OPTIONS[name], "another of these services has it"))
                elif not _bound(probe, wanted):
                    why = listener_of(wanted) or "another user's program listens there"
                    taken.append((wanted, self.OPTIONS[name], why))
                else:
                    found[name] = int(probe.getsockname()[1])
        if taken:
            told = [f"Port {port} ({option}) is taken: {why}." for port, option, why in taken]
            port, option, _ = taken[0]
            told.append(
                f"Stop what listens there, or choose another: {option} {_next(port)}, "
                "or 0 for a free one."
            )
            raise PortsTakenError("\n".join(told))
        return Ports(**found)


def _next(port: int) -> int:
    return port + 1 if port < 65_535 else 0


def _bound(probe: socket.socket, port: int) -> bool:
    # A server that just ended leaves connections behind; one that listens is still in use.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(port != 0))
    try:
        probe.bind((LOOPBACK, port))
    except OSError:
        return False
    return True


def is_taken(port: int) -> bool:
    """Whether a port of loopback can't be listened on."""
    with socket.socket() as probe:
        return not _bound(probe, port)


def listener_of(port: int) -> str:
    """`process 123 (python -m http.server)`, or nothing where that is not for this user to see."""
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            command = " ".join(process.info["cmdline"] or [])
            shown = command if len(command) <= 60 else f"{command[:59]}…"
            return f"process {process.pid} ({shown}) listens there"
    return ""


@dataclass(frozen=True)
class Plan:
    """What is to be started.

    Args:
        home: the local folder of the home.
        variables: of the worker and its runs: where their home is.
        folder: where the worker runs.
        ports: without a 0.
        database: of both servers; SQLite files in the home for None.
        cluster: opens the Dask cluster; None for no cluster.
        pool: whose runs the worker takes; None for no worker.
        timeout_s: for each service to answer.
    """

    home: Path
    variables: dict[str, str]
    folder: Path
    ports: Ports
    database: Database | None
    cluster: Callable[[], AbstractContextManager[Client]] | None
    pool: str | None
    timeout_s: float


@dataclass(frozen=True)
class Up:
    """The services while they run."""

    services: Services
    processes: tuple[ServiceProcess, ...]
    client: Client | None

    def check(self) -> None:
        """Raises ServiceError where one has ended by itself."""
        for process in self.processes:
            process.check()
        if self.client is not None and self.client.status != "running":
            raise ServiceError("The Dask cluster has ended.")


@contextmanager
def open_services(plan: Plan, claim: Claim, tell: Tell) -> Iterator[Up]:
    """Start everything side by side and hand over once all of it answers; stop it at the end.

    `tell` hears of each that does: its name, its address and the seconds since the start.

    Raises:
        ServiceError, PrefectServerError, MlflowStoreError, ClusterError: one did not come up.
    """
    began = time.monotonic()

    def told(name: str, where: str) -> None:
        tell(name, where, time.monotonic() - began)

    with ExitStack() as stack:
        beside = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        prefect = stack.enter_context(
            start_standing_prefect(
                plan.home,
                port=plan.ports.prefect,
                database=plan.database.prefect if plan.database else None,
                startup_timeout_s=plan.timeout_s,
            )
        )
        starting = beside.submit(_start_mlflow, plan)
        stack.callback(_stop, starting)
        address = f"http://{LOOPBACK}:{plan.ports.mlflow}"
        services = claim.tell(
            prefect=prefect.api_url,
            mlflow=address,
            store=address if plan.database else f"sqlite:///{plan.home.absolute() / 'mlflow.db'}",
            pool=plan.pool or "",
            database=plan.database.shown if plan.database else "",
        )
        client = None
        if plan.cluster:
            client = stack.enter_context(plan.cluster())
            services = claim.tell(
                dask=client.scheduler_info()["address"], dashboard=client.dashboard_link
            )
            told("Dask", services.dashboard)
        prefect.wait()
        told("Prefect", services.pages)
        processes = [prefect.process] if prefect.process else []
        if plan.pool:
            worker = start_worker(
                plan.home,
                plan.folder,
                pool=plan.pool,
                api_url=prefect.api_url,
                environment=_of_runs(plan, prefect.environment(), services),
                startup_timeout_s=plan.timeout_s,
            )
            stack.callback(worker.stop)
            processes.append(worker)
        mlflow = starting.result()
        mlflow.wait()
        told("MLflow", services.mlflow)
        if plan.pool:
            worker.wait()
            told("Worker", f"work pool {plan.pool!r}")
        yield Up(claim.tell(ready=True), (mlflow, *processes), client)


def _start_mlflow(plan: Plan) -> ServiceProcess:
    return start_mlflow(
        plan.home,
        port=plan.ports.mlflow,
        store=plan.database.mlflow if plan.database else prepare_store(plan.home),
        startup_timeout_s=plan.timeout_s,
    )


def _stop(starting: Future[ServiceProcess]) -> None:
    if starting.exception() is None:
        starting.result().stop()


def _of_runs(plan: Plan, prefect: dict[str, str], services: Services) -> dict[str, str]:
    """Variables of the worker and its runs: the home's services, whatever the shell names."""
    of_embedded = ("PREFECT_HOME", EMBEDDED)
    kept = {name: value for name, value in prefect.items() if name not in of_embedded}
    store = services.mlflow if plan.database else ""
    return {**kept, "MLFLOW_TRACKING_URI": store, **plan.variables}

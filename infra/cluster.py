"""Opening a Dask cluster: one function for every kind, one entry of `CLUSTER_KINDS` per kind."""

from __future__ import annotations

import asyncio
import difflib
import importlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.versions import VersionMismatchWarning
from distributed.worker import Worker

from infra.worker_process import WORKER_LOG_VARIABLE

LOG_LIMIT_BYTES = 5_000_000
# A worker in the middle of a task that does not end is killed after 0.8 of this.
CLOSE_TIMEOUT_S = 1.5
# Nothing at the end of a run waits longer for a scheduler that does not answer.
CLOSING_LIMIT_S = 15
# Packages that must agree between us and a running cluster: the first three or nothing works, the
# rest or results differ.
SAME_VERSIONS = ("python", "dask", "distributed", "numpy", "pandas", "pyarrow", "xgboost")
_LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application")


class ClusterError(RuntimeError):
    """The cluster could not be opened."""


@dataclass(frozen=True)
class ClusterPlan:
    """What a kind of cluster is opened with; see `open_cluster`."""

    workers: int
    threads: int
    memory_limit: str | int | None
    address: str | None
    log_folder: Path
    scratch_folder: Path
    dashboard: bool
    start_timeout_s: float
    worker_ttl_s: float
    quiet: bool
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def open_cluster(
    *,
    kind: str = "local",
    workers: int = 2,
    threads: int | None = None,
    memory_limit: str | int | None = "auto",
    address: str | None = None,
    local_directory: Path | str | None = None,
    dashboard: bool = False,
    start_timeout_s: float = 60,
    worker_ttl_s: float = 25,
    environment: Mapping[str, str] | None = None,
    imports: Sequence[str] = (),
    quiet: bool = True,
) -> Iterator[Client]:
    """Open a cluster, yield its client, and close what was opened.

    Args:
        kind: `local` starts worker processes here, `address` uses a running scheduler.
        workers: worker processes to start.
        threads: threads of each; the cores of this machine divided by `workers` by default.
        memory_limit: of each worker, as Dask takes it (`"4GB"`, bytes, `"auto"`, `None` or 0 for
            no limit).
        address: of the scheduler, for `address`.
        local_directory: where workers spill, in a folder that is removed at the end, and where
            `dask.log` and `workers.log` are kept. A temporary folder by default.
        dashboard: serve Dask's pages, on loopback, for `local`.
        start_timeout_s: how long to wait for the scheduler and the workers.
        worker_ttl_s: a worker silent for so long is treated as lost.
        environment: variables of the worker processes, there before any library is loaded.
        imports: modules that the workers import in the background once they are up.
        quiet: Dask's log lines and what workers print go to the two files, not to the terminal.

    Raises:
        ClusterError: the kind is unknown, a setting does not fit it, or it did not come up.
    """
    if kind not in CLUSTER_KINDS:
        raise ClusterError(_unknown_kind(kind))
    if workers < 1 or (threads is not None and threads < 1):
        raise ClusterError(
            f"A cluster needs at least one worker and one thread: cluster.workers={workers}, "
            f"cluster.threads={threads}."
        )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(_scratch_folder(local_directory)))
        log_folder = scratch if local_directory is None else Path(local_directory).absolute()
        plan = ClusterPlan(
            workers=workers,
            threads=threads or max(1, CPU_COUNT // workers),
            memory_limit=memory_limit,
            address=address,
            log_folder=log_folder,
            scratch_folder=scratch,
            dashboard=dashboard,
            start_timeout_s=start_timeout_s,
            worker_ttl_s=worker_ttl_s,
            quiet=quiet,
            environment=dict(environment or {}),
        )
        if quiet:
            stack.enter_context(_logging_to(_fresh_log(log_folder / "dask.log")))
        client = stack.enter_context(CLUSTER_KINDS[kind](plan))
        if imports:
            client.register_plugin(ImportAhead(tuple(imports)))
        yield client


def send_user_folder(client: Client, folder: Path | str) -> None:
    """Append `folder` to `sys.path` of every worker, present and to come.

    It is never put first: a user's `tasks.py` must not hide ours.
    """
    client.register_plugin(UserFolder(str(Path(folder).absolute())))


class UserFolder(WorkerPlugin):
    """Appends a folder to a worker's `sys.path`."""

    name = "boostline-user-folder"
    idempotent = False

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def setup(self, worker: Worker) -> None:
        if self.folder not in sys.path:
            sys.path.append(self.folder)


class ImportAhead(WorkerPlugin):
    """Imports modules in the background, so that the first task finds them loaded."""

    name = "boostline-import-ahead"

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.modules = modules

    def setup(self, worker: Worker) -> None:
        def run() -> None:
            for name in self.modules:
                importlib.import_module(name)

        threading.Thread(target=run, name="import-ahead", daemon=True).start()


class WorkerProcesses(LocalCluster):
    """A local cluster that survives the loss of several workers at once.

    Dask's own raises KeyError for a lost worker that its picture of the scheduler, refreshed once
    a second, does not show yet or any more; closing it then fails and the exit takes 10 s longer.
    """

    def _update_worker_status(self, op: str, msg: Any) -> None:
        with suppress(KeyError):
            super()._update_worker_status(op, msg)


@contextmanager
def _open_local(plan: ClusterPlan) -> Iterator[Client]:
    """Start worker processes on this machine, with nannies that start a lost one again."""
    if plan.address is not None:
        raise ClusterError(
            f"cluster.address={plan.address!r} is given but cluster.kind is 'local', which starts "
            f"its own. Set cluster.kind='address', or remove cluster.address."
        )
    threads = str(plan.threads)
    variables = {
        # Waiting threads of OpenMP sleep; spinning ones cost a factor of four beside other work.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        # Dask's own default, kept since setting the table replaces it.
        "MALLOC_TRIM_THRESHOLD_": "65536",
        **plan.environment,
    }
    if plan.quiet:
        variables[WORKER_LOG_VARIABLE] = str(_fresh_log(plan.log_folder / "workers.log"))
        # Holds from the worker's first import on, before its output goes to the file.
        variables["DASK_LOGGING__DISTRIBUTED"] = "warning"
    settings = {
        "distributed.nanny.pre-spawn-environ": variables,
        "distributed.scheduler.worker-ttl": f"{plan.worker_ttl_s}s",
        # A task whose worker died is not tried elsewhere: who drives the work decides.
        "distributed.scheduler.allowed-failures": 0,
        # A worker that is being started again is given up no sooner than a first one.
        "distributed.deploy.lost-worker-timeout": f"{plan.start_timeout_s}s",
        "distributed.comm.timeouts.connect": f"{plan.start_timeout_s}s",
    }
    with ExitStack() as stack:
        # The environment wins over Dask's settings, and nannies write theirs into it.
        stack.enter_context(_environment(variables))
        stack.enter_context(dask.config.set(settings))
        try:
            cluster = WorkerProcesses(
                n_workers=plan.workers,
                threads_per_worker=plan.threads,
                memory_limit=plan.memory_limit,
                host="127.0.0.1",
                # Given even without a dashboard: the scheduler's health page would take port 8787.
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": plan.dashboard},
                local_directory=str(plan.scratch_folder),
                death_timeout=plan.start_timeout_s,
                silence_logs=False,
                preload=["infra.worker_process"],
            )
            stack.enter_context(_closing(cluster))
            client = stack.enter_context(Client(cluster, timeout=plan.start_timeout_s))
            client.wait_for_workers(plan.workers, timeout=plan.start_timeout_s)
        except Exception as error:
            raise ClusterError(
                f"The local cluster of {plan.workers} workers did not come up within "
                f"{plan.start_timeout_s:g} s (cluster.start_timeout): {error or type(error)}. "
                f"What Dask said is in {plan.log_folder}."
            ) from error
        yield client


@contextmanager
def _open_address(plan: ClusterPlan) -> Iterator[Client]:
    """Connect to a running scheduler that has at least one worker."""
    if plan.address is None:
        raise ClusterError(
            "cluster.kind='address' needs cluster.address, as in 'tcp://scheduler:8786'."
        )
    if plan.environment:
        raise ClusterError(
            f"The workers at {plan.address} (cluster.address) run already: their environment "
            f"({', '.join(sorted(plan.environment))}) is set where they are started."
        )
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VersionMismatchWarning)
                client = stack.enter_context(Client(plan.address, timeout=plan.start_timeout_s))
        except (OSError, ValueError) as error:  # distributed's CommClosedError is an OSError
            raise ClusterError(
                f"No Dask scheduler answers at {plan.address} (cluster.address) after "
                f"{time.monotonic() - started:.0f} s: {error}. Start one with `dask scheduler`, "
                f"correct cluster.address, or allow more time with cluster.start_timeout "
                f"(now {plan.start_timeout_s:g} s)."
            ) from error
        remaining = plan.start_timeout_s - (time.monotonic() - started)
        try:
            client.wait_for_workers(1, timeout=max(remaining, 1))
        except TimeoutError as error:
            raise ClusterError(
                f"The Dask scheduler at {plan.address} (cluster.address) has no worker after "
                f"{plan.start_timeout_s:g} s (cluster.start_timeout). Start one with "
                f"`dask worker {plan.address}`."
            ) from error
        _check_versions(client, plan.address)
        yield client


# A new kind (cuda, kubernetes, slurm) is one function that yields a client, and one line here.
CLUSTER_KINDS: dict[str, Callable[[ClusterPlan], AbstractContextManager[Client]]] = {
    "local": _open_local,
    "address": _open_address,
}


def _unknown_kind(kind: str) -> str:
    known = ", ".join(repr(name) for name in sorted(CLUSTER_KINDS))
    close = difflib.get_close_matches(kind, CLUSTER_KINDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown cluster.kind {kind!r}. There are {known}.{hint}"


def _check_versions(client: Client, address: str) -> None:
    """Refuse a cluster whose packages are not ours.

    Raises:
        ClusterError: names each package, our version and that of each host that differs.
    """
    # Dask's own list lacks what decides our results.
    extra = [name for name in SAME_VERSIONS if name not in ("python", "dask", "distributed")]
    found = cast(dict[str, Any], client.get_versions(check=False, packages=extra))
    if different := _different_versions(found):
        raise ClusterError(
            f"The versions of the cluster at {address} (cluster.address) are not ours: "
            f"{'; '.join(different)}. Install the same constraints.txt on every host."
        )


def _different_versions(found: Mapping[str, Any]) -> list[str]:
    """Return one phrase for each package that differs in what `Client.get_versions` found."""
    ours = found["client"]
    different: dict[str, str] = {}
    hosts = {f"worker {name}": version for name, version in found["workers"].items()}
    hosts["scheduler"] = found["scheduler"]
    for host, theirs in hosts.items():
        for package in SAME_VERSIONS:
            mine, other = _version(ours, package), _version(theirs, package)
            # A scheduler needs no pandas, XGBoost and the like.
            if mine != other and not (host == "scheduler" and other is None):
                different[package] = f"{package} {mine} here, {other} on {host}"
    return list(different.values())


def _version(versions: Mapping[str, dict[str, str | None]], package: str) -> str | None:
    if package == "python":
        full = versions["host"]["python"] or ""
        return ".".join(full.split(".")[:2])
    return versions["packages"].get(package)


@contextmanager
def _scratch_folder(parent: Path | str | None) -> Iterator[str]:
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="cluster-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _closing(cluster: LocalCluster) -> Iterator[None]:
    async def close_workers() -> None:
        nannies = cluster.workers.values()
        await asyncio.gather(
            *(nanny.close(timeout=CLOSE_TIMEOUT_S) for nanny in nannies), return_exceptions=True
        )
        # A scheduler that has not noticed yet would wait for ever to retire who is gone.
        scheduler = cluster.scheduler
        for address in list(scheduler.workers):
            await scheduler.remove_worker(
                address, stimulus_id="boostline-close", expected=True, close=False
            )

    try:
        yield
    finally:
        # The cluster's own way gives each worker 5 s to finish what it is doing.
        with suppress(TimeoutError):
            cluster.sync(close_workers, callback_timeout=CLOSING_LIMIT_S)
        with suppress(TimeoutError):
            cluster.close(timeout=CLOSING_LIMIT_S)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in [*variables, "PYTHONHASHSEED"]}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _fresh_log(path: Path) -> Path:
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send the log lines of Dask and Tornado in this process to `path`."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        # Children of `distributed` without handlers of their own pass theirs on to it.
        logger.handlers = [handler]
        logger.propagate = False
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers = handlers
            logger.propagate = propagate
        handler.close()

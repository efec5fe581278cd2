"""Opening a Dask cluster: one function for every kind, one entry of `CLUSTER_KINDS` per kind."""

import difflib
import fcntl
import importlib
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from distributed import Client, WorkerPlugin
from distributed.worker import Worker

from infra.address_cluster import open_address
from infra.cluster_plan import (
    Asked,
    ClusterError,
    ClusterPlan,
    ClusterSettingError,
    GpuPlan,
    TlsFiles,
    fresh_log,
    threads_here,
)
from infra.cuda_cluster import open_cuda
from infra.local_cluster import open_local

__all__ = [
    "CLUSTER_KINDS",
    "ClusterError",
    "on_every_worker",
    "open_cluster",
    "send_user_folder",
    "send_variables",
]

# Of a worker that Kubernetes or Slurm starts: this host says nothing about theirs.
REMOTE_THREADS = 2
REMOTE_MEMORY = "4GiB"
_LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application")


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
    dashboard_port: int = 0,
    start_timeout_s: float = 60,
    worker_ttl_s: float = 25,
    environment: Mapping[str, str] | None = None,
    imports: Sequence[str] = (),
    quiet: bool = True,
    tls: TlsFiles | None = None,
    gpu: GpuPlan | None = None,
    max_workers: int | None = None,
    asked: Asked | None = None,
) -> Iterator[Client]:
    """Open a cluster, yield its client, and close what was opened.

    Args:
        kind: `local` starts worker processes here, `cuda` one for each GPU of this host, `address`
            uses a running scheduler, `kubernetes` and `slurm` have scheduler or workers started
            for us.
        workers: worker processes to start.
        threads: threads of each; the cores of this machine divided by `workers` by default, or
            `REMOTE_THREADS` where the workers are elsewhere.
        memory_limit: of each worker, as Dask takes it (`"4GB"`, bytes, `"auto"`, `None` or 0 for
            no limit); `"auto"` is `REMOTE_MEMORY` where the workers are elsewhere.
        address: of the scheduler, for `address`.
        local_directory: where workers spill, in a folder that is removed at the end, and where
            `dask.log` and `workers.log` are kept. A temporary folder by default.
        dashboard: serve Dask's pages, on loopback, for `local`.
        dashboard_port: theirs; a free one if 0.
        start_timeout_s: how long to wait for the scheduler and the workers.
        worker_ttl_s: a worker silent for so long is treated as lost.
        environment: variables of the worker processes, there before any library is loaded.
        imports: modules that the workers import in the background once they are up.
        tls: certificates, for `address` and `kubernetes`; nothing but TLS is spoken then.
        max_workers: the cluster grows from `workers` to so many while there is work for them.
        asked: what Kubernetes or Slurm is asked for.
        gpu: settings of `cuda`.
        quiet: Dask's log lines and what workers print go to the two files, not to the terminal.

    Raises:
        ClusterError: the kind is unknown, a setting does not fit it, or it did not come up.
        ClusterSettingError: the extra of the kind is not installed, or a setting is refused.
    """
    if kind not in CLUSTER_KINDS:
        raise ClusterError(_unknown_kind(kind))
    if workers < 1 or (threads is not None and threads < 1):
        raise ClusterError(
            f"A cluster needs at least one worker and one thread: cluster.workers={workers}, "
            f"cluster.threads={threads}."
        )
    _check_extra(kind)
    elsewhere = kind in EXTRAS
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(_scratch_folder(local_directory)))
        log_folder = scratch if local_directory is None else Path(local_directory).absolute()
        plan = ClusterPlan(
            workers=workers,
            threads=threads or (REMOTE_THREADS if elsewhere else threads_here(workers)),
            memory_limit=REMOTE_MEMORY if elsewhere and memory_limit == "auto" else memory_limit,
            address=address,
            log_folder=log_folder,
            scratch_folder=scratch,
            dashboard=dashboard,
            dashboard_port=dashboard_port,
            start_timeout_s=start_timeout_s,
            worker_ttl_s=worker_ttl_s,
            quiet=quiet,
            tls=tls,
            max_workers=max_workers,
            asked=asked or Asked(),
            environment=dict(environment or {}),
            imports=tuple(imports),
            gpu=gpu or GpuPlan(),
        )
        if quiet:
            stack.enter_context(_logging_to(fresh_log(log_folder / "dask.log")))
        client = stack.enter_context(CLUSTER_KINDS[kind](plan))
        if imports:
            client.register_plugin(ImportAhead(tuple(imports)))
        yield client


def send_user_folder(client: Client, folder: Path | str) -> None:
    """Append `folder` to `sys.path` of every worker, present and to come.

    It is never put first: a user's `tasks.py` must not hide ours.
    """
    client.register_plugin(UserFolder(str(Path(folder).absolute())))


def on_every_worker(client: Client, function: Callable[[], None]) -> None:
    """Call an importable function once on every worker, present and to come."""
    client.register_plugin(OnStart(function))


class OnStart(WorkerPlugin):
    """Calls a function when a worker starts."""

    name = "boostline-on-start"
    idempotent = True  # a cluster of others' may have it from the run before

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def setup(self, worker: Worker) -> None:
        self.function()


def send_variables(client: Client, variables: Mapping[str, str]) -> None:
    """Set environment variables of every worker, present and to come, in memory alone."""
    for name, value in variables.items():
        client.register_plugin(Variable(name, value))


class Variable(WorkerPlugin):
    """Sets an environment variable of a worker.

    A plugin replaces another of its name: of two runs on one cluster neither may take the other's
    variables from new workers, nor give them an old value of its own.
    """

    idempotent = False  # the value may be another

    def __init__(self, variable: str, value: str) -> None:
        self.name = f"boostline-variable-{variable}"
        self.variable, self.value = variable, value

    def setup(self, worker: Worker) -> None:
        os.environ[self.variable] = self.value


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


def _open_kubernetes(plan: ClusterPlan) -> AbstractContextManager[Client]:
    from infra.kubernetes_cluster import open_kubernetes

    return open_kubernetes(plan)


def _open_slurm(plan: ClusterPlan) -> AbstractContextManager[Client]:
    from infra.slurm_cluster import open_slurm

    return open_slurm(plan)


# A new kind is one file with a function that yields a client, and one line here.
CLUSTER_KINDS: dict[str, Callable[[ClusterPlan], AbstractContextManager[Client]]] = {
    "local": open_local,
    "address": open_address,
    "kubernetes": _open_kubernetes,
    "slurm": _open_slurm,
    "cuda": open_cuda,
}
# Kinds whose workers are started elsewhere: the package of their extra, which has the kind's name.
EXTRAS = {"kubernetes": "kr8s", "slurm": "dask_jobqueue"}


def _check_extra(kind: str) -> None:
    if (package := EXTRAS.get(kind)) and find_spec(package) is None:
        raise ClusterSettingError(
            f"cluster.kind={kind!r} needs the package {package.replace('_', '-')}, which is not "
            f"installed. Install it with: pip install 'boostline[{kind}]'"
        )


def _unknown_kind(kind: str) -> str:
    known = ", ".join(repr(name) for name in sorted(CLUSTER_KINDS))
    close = difflib.get_close_matches(kind, CLUSTER_KINDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown cluster.kind {kind!r}. There are {known}.{hint}"


@contextmanager
def _scratch_folder(parent: Path | str | None) -> Iterator[str]:
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="cluster-", dir=parent)
    try:
        # `boostline clean` passes over a folder with a lock that is held, however old its files are
        with open(os.path.join(folder, "in-use.lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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

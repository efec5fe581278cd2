"""What every kind of cluster is opened with, and how it says that it could not be."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LOG_LIMIT_BYTES = 5_000_000


class ClusterError(RuntimeError):
    """The cluster could not be opened."""


class ClusterSettingError(ClusterError):
    """The cluster could not be opened because a setting is wrong."""


@dataclass(frozen=True)
class TlsFiles:
    """Paths of the CA's certificate, this host's certificate and its key."""

    ca: str
    cert: str
    key: str


@dataclass(frozen=True)
class GpuPlan:
    """Settings of the kind `cuda`.

    `devices` are numbers or UUIDs as CUDA_VISIBLE_DEVICES takes them, all of this host's where
    there are none. `memory_limit` is of one GPU, as Dask takes it, None for all of it. `allocator`
    is RMM's for cuDF and CuPy: `async` is CUDA's own pool, which XGBoost can use beside it, `pool`
    keeps `pool_size` for RMM alone, `none` allocates piece by piece. `spill` moves cuDF's columns
    to the host where a GPU is full. `protocol` is `tcp` or `ucx`.
    """

    devices: tuple[str, ...] = ()
    memory_limit: str | None = None
    allocator: str = "async"
    pool_size: str | None = None
    spill: bool = True
    protocol: str = "tcp"


@dataclass(frozen=True)
class Asked:
    """What is asked of Kubernetes or Slurm for each worker; the settings of `cluster` by name."""

    gpus: int = 0
    image: str = ""
    namespace: str | None = None
    tls_secret: str | None = None
    env_secret: str | None = None
    queue: str | None = None
    account: str | None = None
    walltime: str = "04:00:00"
    interface: str | None = None
    prologue: Sequence[str] = ()
    directives: Sequence[str] = ()


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
    tls: TlsFiles | None = None
    max_workers: int | None = None
    asked: Asked = Asked()
    environment: Mapping[str, str] = field(default_factory=dict)
    imports: Sequence[str] = ()
    dashboard_port: int = 0
    gpu: GpuPlan = GpuPlan()


# Whether it is late is looked at 50 times a second by each scheduler, nanny and worker, which takes
# the processor from a worker that boosts, and all others wait for that one.
_TICK = {"distributed.admin.tick.interval": "1s"}
# Whoever starts the scheduler sets these: what fails or falls silent is our own decision.
SCHEDULER_SETTINGS = {
    **_TICK,
    # Dask's own watch takes up to twice as long, and ends healthy workers after a sleep.
    "distributed.scheduler.worker-ttl": None,
    # A task whose worker died is not tried elsewhere: who drives the work decides.
    "distributed.scheduler.allowed-failures": 0,
}
# Results are small and tasks hold the memory: a paused worker would wait for ever.
WORKER_SETTINGS = {
    **_TICK,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # Looking at the stacks of its threads every 10 ms takes a worker 3 % of its time.
    "distributed.worker.profile.interval": "100ms",
}


def threads_here(workers: int) -> int:
    """Threads of each of so many workers on this machine, where none are given."""
    from dask.system import CPU_COUNT

    return max(1, int(CPU_COUNT) // workers)


def worker_variables(
    threads: int, more: Mapping[str, str], *, quiet: bool = False
) -> dict[str, str]:
    """Environment of a worker process, from its first import on."""
    return {
        # Waiting threads of OpenMP sleep; spinning ones cost a factor of four beside other work.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        # Freed memory up to so much is used again, from one heap for all threads. With Dask's own
        # 64 KiB, or with blocks that are mapped one by one, each batch's columns and each round's
        # gradients are given back to the system and taken anew, page by page: a third of the
        # processor time of the passes over the rows.
        "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
        "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
        "MALLOC_ARENA_MAX": "1",
        # Holds until the worker's output goes to a file.
        **({"DASK_LOGGING__DISTRIBUTED": "warning"} if quiet else {}),
        **more,
    }


@contextmanager
def environment(variables: Mapping[str, str], *others: str) -> Iterator[None]:
    """This process's, with these variables while it lasts; `others` are as before after it, too."""
    before = {name: os.environ.get(name) for name in [*variables, *others]}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def as_variables(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings of Dask as environment variables, for processes elsewhere."""
    return {
        "DASK_" + key.upper().replace(".", "__").replace("-", "_"): repr(value)
        for key, value in settings.items()
    }


def fresh_log(path: Path) -> Path:
    """The path of a log to append to; one that has grown too long is put beside it first."""
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path

"""What every kind of cluster is opened with, and how it says that it could not be."""

from collections.abc import Mapping
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
    environment: Mapping[str, str] = field(default_factory=dict)
    gpu: GpuPlan = GpuPlan()


def fresh_log(path: Path) -> Path:
    """The path of a log to append to; one that has grown too long is put beside it first."""
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path

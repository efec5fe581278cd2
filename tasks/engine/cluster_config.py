"""The section `cluster`: where a run takes place."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tasks.engine.section import Section
from tasks.engine.tls import check_tls

_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"  # of an object of Kubernetes


def _a_size(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"(?i)\d+(\.\d+)? *([kmgtp]i?)?b?", text.strip()):
        raise ValueError(f'{text!r} is no size of memory: write it as in "4GiB"')
    return text


def _a_size_or_auto(text: str | None) -> str | None:
    if text is not None and text.strip().lower() == "auto":
        return "auto"
    return _a_size(text)


def _each_once(devices: tuple[str, ...]) -> tuple[str, ...]:
    if repeated := [device for device in devices if devices.count(device) > 1]:
        raise ValueError(
            f"{repeated[0]!r} is named more than once: a GPU takes one worker, as NCCL has it"
        )
    return devices


def _one_at_most(gpus: int) -> int:
    if gpus > 1:
        raise ValueError(
            f"a worker trains on one GPU, not {gpus}: set cluster.gpus=1, and cluster.workers to "
            "the number of all GPUs"
        )
    return gpus


def _a_walltime(text: str) -> str:
    if not re.fullmatch(r"(\d+-)?\d{1,3}(:\d{2}){1,2}", text.strip()):
        raise ValueError(f'{text!r} is no time of Slurm: write it as in "04:00:00" or "1-00:00:00"')
    return text.strip()


# Settings that only some kinds have a use for.
OF_KINDS = {
    "max_workers": ("local", "kubernetes", "slurm"),
    "gpus": ("kubernetes", "slurm"),
    "gpu_devices": ("cuda", "auto"),
    "address": ("address",),
    "image": ("kubernetes",),
    "namespace": ("kubernetes",),
    "tls_secret": ("kubernetes",),
    "env_secret": ("kubernetes",),
    "queue": ("slurm",),
    "account": ("slurm",),
    "walltime": ("slurm",),
    "interface": ("slurm",),
    "prologue": ("slurm",),
    "directives": ("slurm",),
}


class ClusterConfig(Section):
    """Where it runs: never changes the model's bytes."""

    kind: Literal["local", "address", "cuda", "auto", "kubernetes", "slurm"] = Field(
        "local",
        description="A Dask cluster of this host's cores, a running one by its address, one of "
        "this host's GPUs (auto: where there are any, else of its cores), or one that is started "
        "for the run by Kubernetes' Dask operator or as jobs of Slurm.",
    )
    workers: int = Field(
        2, description="Worker processes (local), pods (kubernetes) or jobs (slurm).", ge=1, le=1024
    )
    max_workers: int | None = Field(
        None,
        description="Workers that the cluster grows to while there is work for them, and has "
        "during the training; always `workers` if unset (local, kubernetes, slurm).",
        ge=1,
        le=1024,
    )
    threads: int | None = Field(
        None,
        description="Threads of a worker, 8 at most with cuda; this host's cores dealt out if "
        "unset, 2 CPUs each with kubernetes and slurm.",
        ge=1,
    )
    memory_limit: Annotated[str | None, AfterValidator(_a_size_or_auto)] = Field(
        None,
        description='Memory of a worker, as in "8GiB"; a share of this host\'s if unset, 4GiB each '
        "with kubernetes and slurm.",
    )
    gpus: Annotated[int, AfterValidator(_one_at_most)] = Field(
        0, description="GPUs of a worker: 1, or 0 for processors alone (kubernetes, slurm).", ge=0
    )
    external_memory: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether binned features are read from the workers' scratch folders in every "
        "round: where they don't fit memory_limit, in any case, or never.",
    )
    gpu_devices: Annotated[tuple[str, ...], AfterValidator(_each_once)] = Field(
        (),
        description='GPUs by number or UUID, as in `["0", "1"]`, a worker for each; all if empty '
        "(cuda).",
    )
    gpu_memory_limit: Annotated[str | None, AfterValidator(_a_size)] = Field(
        None, description='Memory of a GPU that a training may take, as in "40GiB"; all if unset.'
    )
    gpu_allocator: Literal["async", "pool", "none"] = Field(
        "async",
        description="Memory of cuDF and CuPy: from CUDA's own pool, which XGBoost can use beside "
        "them, from a pool of theirs, or piece by piece (cuda, kubernetes, slurm).",
    )
    gpu_pool_size: Annotated[str | None, AfterValidator(_a_size)] = Field(
        None, description='Size of that pool, as in "20GiB"; half of the GPU if unset.'
    )
    gpu_spill: bool = Field(
        True,
        description="Let cuDF move columns to the host where a GPU is full (cuda, kubernetes, "
        "slurm).",
    )
    protocol: Literal["tcp", "ucx"] = Field(
        "tcp", description="How Dask's workers talk; XGBoost between GPUs speaks NCCL (cuda)."
    )
    address: str | None = Field(None, description="Scheduler, as in `tls://10.0.0.1:8786`.")
    tls_ca: str | None = Field(
        None,
        description="File of the CA that signed the certificates of scheduler, workers and this "
        "host (address, kubernetes). XGBoost's own traffic between workers is not encrypted all "
        "the same: sums of gradients, over plain TCP. Keep workers in a network of their own.",
    )
    tls_cert: str | None = Field(
        None, description="File of this host's certificate (address, kubernetes)."
    )
    tls_key: str | None = Field(
        None, description="File of that certificate's key (address, kubernetes)."
    )
    tls_secret: str | None = Field(
        None,
        description="Secret with ca.crt, tls.crt and tls.key for the scheduler and the workers "
        "(kubernetes).",
        pattern=_NAME,
    )
    allow_insecure: bool = Field(
        False,
        description="Use a scheduler on another host without TLS: who reaches it can run code on "
        "the workers and read along, the source's password included.",
    )
    dashboard: bool = Field(False, description="Serve Dask's dashboard on loopback (local).")
    image: str | None = Field(
        None,
        description="Container image with Boostline, the one that this process runs in "
        "(kubernetes).",
        min_length=1,
    )
    namespace: str | None = Field(
        None,
        description="Namespace of the cluster; that of this pod or kubeconfig if unset "
        "(kubernetes).",
        pattern=_NAME,
    )
    env_secret: str | None = Field(
        None,
        description="Secret whose entries are environment variables of the workers, as storage "
        "needs them (kubernetes).",
        pattern=_NAME,
    )
    queue: str | None = Field(
        None,
        description="Partition of the jobs; Slurm's own choice if unset (slurm).",
        min_length=1,
    )
    account: str | None = Field(
        None, description="Account that pays for the jobs (slurm).", min_length=1
    )
    walltime: Annotated[str, AfterValidator(_a_walltime)] = Field(
        "04:00:00", description="Time after which Slurm ends a worker's job (slurm)."
    )
    interface: str | None = Field(
        None,
        description="Network interface between jobs and this host, as in `ib0` (slurm).",
        min_length=1,
    )
    prologue: tuple[str, ...] = Field(
        (),
        description="Lines of shell in a job before its worker, as in `module load cuda` (slurm).",
    )
    directives: tuple[str, ...] = Field(
        (), description="More options of `sbatch`, as in `--exclusive` (slurm)."
    )
    start_timeout: float = Field(
        60,
        description="Seconds to wait for workers. With kubernetes and slurm it includes pulling "
        "images and the queue: after it a run goes on with those that came, if any did.",
        gt=0,
    )
    replace_timeout: float = Field(
        20, description="Seconds to wait for a lost worker's replacement.", ge=0
    )
    worker_ttl: float = Field(
        25, description="Seconds until a frozen worker or scheduler counts as lost.", gt=0
    )
    form_timeout: float = Field(
        300, description="Seconds for workers to come together for a training.", ge=1
    )
    lock_timeout: float = Field(
        86_400, description="Seconds to wait for another training on the same cluster.", gt=0
    )
    collective_timeout: float = Field(
        1800, description="Seconds that workers wait for each other in a round.", ge=1
    )
    tracker_host: str | None = Field(
        None, description="Address of this process that workers reach; found out if unset."
    )
    tracker_port: int = Field(0, description="Its port; a free one if 0.", ge=0, le=65_535)
    recoveries: int = Field(10, description="Lost groups of workers that a run puts up with.", ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "ClusterConfig":
        for name, kinds in OF_KINDS.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                _check_kind(name, self.kind, kinds)
        if self.gpu_pool_size and self.gpu_allocator != "pool":
            raise ValueError("cluster.gpu_pool_size needs cluster.gpu_allocator=pool")
        if self.kind == "address" and not self.address:
            raise ValueError("cluster.kind=address needs cluster.address")
        if self.kind == "kubernetes" and not self.image:
            raise ValueError(
                "cluster.kind=kubernetes needs cluster.image, a container image with Boostline "
                "(infra/Containerfile makes one)"
            )
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(
                f"cluster.max_workers={self.max_workers} is less than "
                f"cluster.workers={self.workers}"
            )
        check_tls(
            self.kind,
            self.address or "",
            {name: getattr(self, name) for name in ("tls_ca", "tls_cert", "tls_key")},
            self.allow_insecure,
            self.tls_secret,
        )
        return self


def _check_kind(name: str, kind: str, kinds: tuple[str, ...]) -> None:
    if kind not in kinds:
        *others, last = kinds
        taken = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"cluster.{name} is for cluster.kind={taken}")

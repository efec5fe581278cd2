"""The kind `cuda`: one Dask-CUDA worker process for each GPU of this machine.

On many machines it is `dask scheduler` on one, `dask cuda worker` on all, and the kind `address`.
"""

import importlib.util
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dask.system import CPU_COUNT
from distributed import Client, LocalCluster

from infra.cluster_plan import ClusterError, ClusterPlan, ClusterSettingError, GpuPlan
from infra.local_cluster import OutlivesWorkers, processes_here

MOST_THREADS = 8
# Whichever of them is loaded first decides what the process may do with the GPU's memory.
PRE_IMPORT = ("cudf", "cupy", "xgboost")
POOL_SIZE = "0.5"  # of a GPU
# What RMM's pool may hold, in use or free, before it gives back what is free at every wait for the
# GPU, which each column has several of: a share of the GPU, more than the batches of all threads.
# Where a training may fill less than the GPU, little of that is to be held from it.
ASYNC_KEPT = "0.25"
ASYNC_KEPT_OF_A_LIMIT = "1GB"
_INSTALL = "pip install -c constraints.txt -e '.[gpu]'"


@contextmanager
def open_cuda(plan: ClusterPlan) -> Iterator[Client]:
    """Start a worker process for each GPU, with nannies that start a lost one again.

    Raises:
        ClusterSettingError: there is no GPU, or what a setting asks for is not installed.
        ClusterError: the workers did not come up.
    """
    if plan.address is not None:
        raise ClusterError(
            f"cluster.address={plan.address!r} is given but cluster.kind is 'cuda', which starts "
            "its own workers. Set cluster.kind='address' for workers that `dask cuda worker` "
            "started, or remove cluster.address."
        )
    reason = None if plan.gpu.devices else no_gpu()
    if reason is None and importlib.util.find_spec("dask_cuda") is None:
        reason = _not_installed()
    if reason is not None:
        raise ClusterSettingError(
            f"cluster.kind is 'cuda', but {reason}. Set cluster.kind=auto to use GPUs where there "
            "are any, or cluster.kind=local."
        )
    if plan.gpu.protocol == "ucx" and importlib.util.find_spec("distributed_ucxx") is None:
        raise ClusterSettingError(
            "cluster.protocol is 'ucx', but the package distributed-ucxx-cu13 is not installed. "
            "Install it, or set cluster.protocol=tcp: between GPUs XGBoost speaks NCCL either way."
        )
    devices = list(plan.gpu.devices) or gpus()
    # each thread may hold a batch on the GPU
    threads = min(plan.threads, MOST_THREADS, max(1, CPU_COUNT // len(devices)))
    plan = replace(plan, threads=threads)
    arguments = dask_cuda_arguments(plan, devices)
    with processes_here(plan, "cuda", len(devices), _starter(arguments)) as client:
        yield client


def dask_cuda_arguments(plan: ClusterPlan, devices: list[str]) -> dict[str, Any]:
    """What LocalCUDACluster gets beside Dask's own arguments."""
    gpu = plan.gpu
    return {
        "CUDA_VISIBLE_DEVICES": devices,
        "device_memory_limit": gpu.memory_limit or "default",
        "enable_cudf_spill": gpu.spill,
        "protocol": gpu.protocol,
        "rmm_async": gpu.allocator == "async",
        "rmm_release_threshold": _kept(gpu) if gpu.allocator == "async" else None,
        "rmm_pool_size": (gpu.pool_size or POOL_SIZE) if gpu.allocator == "pool" else None,
        # what CuPy holds and what cuDF holds come from one place
        "rmm_allocator_external_lib_list": None if gpu.allocator == "none" else ["cupy"],
        "pre_import": [*PRE_IMPORT],
    }


def dask_cuda_options(gpu: GpuPlan) -> list[str]:
    """The same settings for `dask cuda worker`, where Kubernetes or Slurm starts it."""
    options = ["--device-memory-limit", gpu.memory_limit or "default"]
    options += ["--enable-cudf-spill" if gpu.spill else "--disable-cudf-spill"]
    options += ["--pre-import", ",".join(PRE_IMPORT)]
    if gpu.allocator == "async":
        options += ["--rmm-async", "--rmm-release-threshold", _kept(gpu)]
    if gpu.allocator == "pool":
        options += ["--rmm-pool-size", gpu.pool_size or POOL_SIZE]
    if gpu.allocator != "none":
        options += ["--set-rmm-allocator-for-libs", "cupy"]
    return options


def _kept(gpu: GpuPlan) -> str:
    return ASYNC_KEPT if gpu.memory_limit is None else ASYNC_KEPT_OF_A_LIMIT


def _starter(arguments: Mapping[str, Any]) -> Callable[..., LocalCluster]:
    from dask_cuda import LocalCUDACluster

    class CudaProcesses(OutlivesWorkers, LocalCUDACluster):
        """Worker processes for GPUs."""

    # An argument that Dask-CUDA does not know goes on to Dask's workers, which then fail to start,
    # without a word.
    known = inspect.signature(LocalCUDACluster).parameters
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ClusterError(
            f"This release of dask-cuda does not know {', '.join(unknown)}: install the one of the "
            f"extra 'gpu' ({_INSTALL})."
        )

    def start(**dask: Any) -> LocalCluster:
        if arguments["protocol"] != "tcp":
            del dask["host"]  # UCX takes the address of an interface
        cluster: LocalCluster = CudaProcesses(**{**dask, **arguments})
        return cluster

    return start


def gpus() -> list[str]:
    """This host's GPUs that a process here sees, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # CUDA takes those before the first that it does not know: -1 is how one says none
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))
    return [str(number) for number in range(_count())]


def no_gpu() -> str | None:
    """Why no GPU can be used here, as half a sentence; None where one can."""
    if any(importlib.util.find_spec(name) is None for name in ("pynvml", "dask_cuda", "cudf")):
        return _not_installed()
    import pynvml

    try:
        count = _count()
    except pynvml.NVMLError as error:
        return f"the NVIDIA driver does not answer here ({error})"
    if not count:
        return "the NVIDIA driver finds no GPU here"
    if not gpus():
        return "CUDA_VISIBLE_DEVICES names no GPU"
    return None


def _not_installed() -> str:
    return f"the packages of the extra 'gpu' are not installed ({_INSTALL})"


def _count() -> int:
    import pynvml

    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def device_of(client: Client) -> str:
    """`cuda` where Dask-CUDA started the workers, `cpu` where it started none of them.

    Raises:
        ClusterSettingError: there are both kinds.
    """
    found = client.run(_started_by_dask_cuda, on_error="ignore")
    on_gpu = [address for address, is_cuda in found.items() if is_cuda]
    if on_gpu and len(on_gpu) < len(found):
        others = sorted(set(found) - set(on_gpu))
        raise ClusterSettingError(
            f"{len(on_gpu)} of the cluster's {len(found)} workers have a GPU, and "
            f"{', '.join(others[:3])} none: the workers of a training are all of one kind. Start "
            "all of them with `dask cuda worker`, or all with `dask worker`."
        )
    return "cuda" if on_gpu else "cpu"


def _started_by_dask_cuda(dask_worker: Any) -> bool:
    modules = [type(plugin).__module__ for plugin in dask_worker.plugins.values()]
    return any(module.partition(".")[0] == "dask_cuda" for module in modules)

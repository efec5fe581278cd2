"""Every name, parameter and dispatch of RAPIDS that is used here exists in the pinned release."""

import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from dask.utils import parse_bytes

from infra.cluster import ClusterError, open_cluster
from infra.cluster_plan import ClusterPlan, GpuPlan
from infra.cuda_cluster import dask_cuda_arguments, dask_cuda_options, device_of
from infra.gpu_telemetry import sample_gpu
from tasks.engine import frames
from tasks.engine.booster import checked_device
from tasks.engine.errors import UserError
from tasks.engine.scoring import factorized, float_values

pytestmark = [
    pytest.mark.contract,
    # RAPIDS warns where it finds no driver
    pytest.mark.filterwarnings("default"),
]

PLAN = ClusterPlan(
    workers=2,
    threads=1,
    memory_limit="1GB",
    address=None,
    log_folder=Path(),
    scratch_folder=Path(),
    dashboard=False,
    start_timeout_s=60,
    worker_ttl_s=25,
    quiet=True,
)

# what the code calls, and the parameters that it passes
USED: dict[str, set[str]] = {
    "dask_cuda:LocalCUDACluster": set(dask_cuda_arguments(PLAN, ["0"])),
    "cudf:read_parquet": {
        "filepath_or_buffer",
        "columns",
        "row_groups",
        "use_pandas_metadata",
        "dataset_kwargs",
    },
    "cudf:DataFrame.from_arrow": {"table"},
    "cudf:DataFrame.to_arrow": {"preserve_index"},
    "cudf:Series.to_cupy": {"na_value"},
    "cudf:Series.factorize": {"use_na_sentinel"},
    "cudf:Series.astype": {"dtype"},
    "cudf:Series.fillna": {"value"},
    "cudf:Series.to_frame": {"name"},
    "rmm:reinitialize": {"pool_allocator", "initial_pool_size", "maximum_pool_size"},
    "nvforest:load_model": {"model_file", "model_type", "device", "precision"},
    "nvforest:GPUForestInferenceRegressor.predict": {"X"},
    "nvforest:GPUForestInferenceRegressor.optimize": {"data", "batch_size"},
    "xgboost:ExtMemQuantileDMatrix": {"data", "ref", "max_bin", "cache_host_ratio"},
    "xgboost:DataIter": {"cache_prefix", "on_host", "min_cache_page_bytes"},
}
NAMES = [
    "cudf:Series.isna",
    "cudf:Series.nans_to_nulls",
    "cudf:DataFrame.loc",
    "cudf:DataFrame.items",
    "cudf:Index.to_pandas",
    "cupy:ndarray.get",
    "cupy.cuda.runtime:memGetInfo",
    "rmm.allocators.cupy:rmm_cupy_allocator",
    "rmm.mr:CudaAsyncMemoryResource",
    "rmm.mr:set_current_device_resource",
    "pynvml:NVMLError",
    "pynvml:NVMLError_NotSupported",
    "pynvml:nvmlInit",
    "pynvml:nvmlShutdown",
    "pynvml:nvmlDeviceGetCount",
    "pynvml:nvmlDeviceGetIndex",
    "pynvml:nvmlDeviceGetHandleByIndex",
    "pynvml:nvmlDeviceGetHandleByUUID",
    "pynvml:nvmlDeviceGetMemoryInfo",
    "pynvml:nvmlDeviceGetPowerUsage",
    "pynvml:nvmlDeviceGetUtilizationRates",
]


def named(path: str) -> Any:
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in attributes.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("path", USED)
def test_parameters_exist(path: str) -> None:
    assert USED[path] <= set(inspect.signature(named(path)).parameters)


def test_pods_whose_home_is_read_only_import_cupy(tmp_path: Path) -> None:
    def imported(**more: str) -> int:
        kept = {key: value for key, value in os.environ.items() if key != "CUPY_CACHE_DIR"}
        environment = {**kept, "HOME": "/proc/nowhere", **more}
        command = [sys.executable, "-c", "import cupy"]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    assert imported() != 0
    assert imported(CUPY_CACHE_DIR=str(tmp_path / "cupy")) == 0


@pytest.mark.parametrize("allocator", ["async", "pool", "none"])
def test_dask_cuda_worker_takes_the_options(allocator: str) -> None:
    """Those that Kubernetes' and Slurm's workers are started with."""
    from dask_cuda.cli import worker

    gpu = GpuPlan(allocator=allocator, pool_size="1GB" if allocator == "pool" else None)
    words = ["tcp://127.0.0.1:1", *dask_cuda_options(gpu)]
    taken = worker.make_context("worker", words).params
    assert taken["enable_cudf_spill"] is True and taken["preload_argv"] == ()
    assert taken["rmm_async"] is (allocator == "async")
    assert taken["rmm_pool_size"] == gpu.pool_size


@pytest.mark.parametrize("path", NAMES)
def test_names_exist(path: str) -> None:
    assert named(path) is not None


def test_the_gpu_s_series_and_arrays_are_registered() -> None:
    cudf = frames._cudf()
    import cupy

    assert float_values.dispatch(cudf.Series) is not float_values.dispatch(pd.Series)
    assert factorized.dispatch(cudf.Series) is not factorized.dispatch(pd.Series)
    for kind in (cupy.ndarray, cudf.DataFrame):
        assert frames.on_host.dispatch(kind) is not frames.on_host.dispatch(object)


def test_dask_takes_cudf_frames() -> None:
    """`data.source` may be a loader that returns one."""
    from dask.backends import detect_entrypoints

    assert "cudf" in detect_entrypoints("dask_expr.dataframe.backends")


def test_one_xgboost_with_cuda_13() -> None:
    build = xgb.build_info()
    assert build["USE_CUDA"] and build["CUDA_VERSION"][0] == 13
    assert build["USE_DLOPEN_NCCL"]
    # why RMM's pool is not the default: XGBoost could not take its memory from there
    assert not build["USE_RMM"]


def test_a_device_that_is_not_there_is_told_of() -> None:
    """XGBoost itself goes on on the CPU."""
    booster = xgb.train({"device": "cuda"}, xgb.DMatrix(np.eye(4), np.ones(4)), 1)
    with pytest.raises(UserError, match="asked to train on cuda but XGBoost trained on cpu"):
        checked_device(booster, "cuda")


def test_nvforest_predicts_what_xgboost_does(tmp_path: Path) -> None:
    import nvforest

    rng = np.random.default_rng(0)
    x = rng.random((500, 6), dtype=np.float32)
    booster = xgb.train({"max_depth": 6, "base_score": 0}, xgb.DMatrix(x, x.sum(1)), 30)
    booster.save_model(tmp_path / "booster.ubj")
    forest = nvforest.load_model(tmp_path / "booster.ubj", device="cpu", precision="single")
    expected = booster.predict(xgb.DMatrix(x), output_margin=True)
    np.testing.assert_allclose(forest.predict(x)[:, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def _without_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask-CUDA's own switch: no driver, no affinity, no memory pools."""
    monkeypatch.setenv("DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC", "1")


TWO = GpuPlan(devices=("0", "1"), memory_limit="1GB", spill=False)


@pytest.mark.usefixtures("_without_devices")
def test_two_workers_with_a_gpu_each(tmp_path: Path) -> None:
    with open_cluster(
        kind="cuda", threads=1, memory_limit="1GB", local_directory=tmp_path, gpu=TWO
    ) as client:
        assert len(client.nthreads()) == 2
        seen = client.run(worker_variables)
        assert sorted(seen.values()) == [("0,1", "PASSIVE"), ("1,0", "PASSIVE")]
        assert device_of(client) == "cuda"
        _end_one(client)
        client.wait_for_workers(2, timeout=60)
        seen = client.run(worker_variables)
        assert sorted(seen.values()) == [("0,1", "PASSIVE"), ("1,0", "PASSIVE")]


def worker_variables() -> tuple[str, ...]:
    return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_WAIT_POLICY"]


def _end_one(client: Any) -> None:
    address, pid = next(iter(client.run(os.getpid).items()))
    os.kill(pid, signal.SIGKILL)
    while address in client.scheduler_info(n_workers=-1)["workers"]:
        time.sleep(0.1)


@pytest.mark.usefixtures("_without_devices")
def test_an_argument_that_dask_cuda_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask-CUDA itself would come up without any worker."""
    from infra import cuda_cluster

    more = {**dask_cuda_arguments(PLAN, ["0", "1"]), "rmm_pool": "1GB"}
    monkeypatch.setattr(cuda_cluster, "dask_cuda_arguments", lambda plan, devices: more)
    with (
        pytest.raises(ClusterError) as caught,
        open_cluster(kind="cuda", local_directory=tmp_path, gpu=TWO),
    ):
        pass
    assert str(caught.value) == (
        "This release of dask-cuda does not know rmm_pool: install the one of the extra 'gpu' "
        "(pip install -c constraints.txt -e '.[gpu]')."
    )


def test_the_driver_that_is_missing_is_told_of(tmp_path: Path) -> None:
    from infra.cuda_cluster import no_gpu

    if (reason := no_gpu()) is None:
        pytest.skip("there is a GPU here")
    with (
        pytest.raises(ClusterError) as caught,
        open_cluster(kind="cuda", local_directory=tmp_path),
    ):
        pass
    assert str(caught.value) == (
        f"cluster.kind is 'cuda', but {reason}. Set cluster.kind=auto to use GPUs where there are "
        "any, or cluster.kind=local."
    )


def test_what_a_gpu_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a part of a GPU does; NVML itself, but for its answers, as there is no driver."""
    import pynvml

    def untold(gpu: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda name: name,
        "nvmlDeviceGetIndex": lambda gpu: 3,
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(used=10**9, total=4 * 10**9),
        "nvmlDeviceGetUtilizationRates": untold,
        "nvmlDeviceGetPowerUsage": untold,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    place = f"{os.uname().nodename}/gpu_3"
    assert sample_gpu() == {
        f"{place}_memory_usage_megabytes": 1000.0,
        f"{place}_memory_usage_percentage": 25.0,
    }


def test_sizes_are_read_by_dask() -> None:
    assert parse_bytes("40GiB") == 40 << 30
    assert json.dumps(dask_cuda_arguments(PLAN, ["0"]))  # plain values: they travel

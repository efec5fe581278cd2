"""GPUs that are not there, settings that don't fit, and what GPUs do during a run."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, WorkerPlugin

from flows.places import chosen, cluster_of, device_of
from infra.cluster_plan import GpuPlan
from infra.cuda_cluster import dask_cuda_options, gpus, no_gpu
from infra.gpu_telemetry import watching_gpus
from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.errors import UserError
from tasks.engine.home import Home


@pytest.fixture
def reason() -> str:
    """Why there is no GPU on this machine."""
    if (found := no_gpu()) is None:
        pytest.skip("there is a GPU here")
    return found


def test_auto_takes_the_cpu_and_says_why(reason: str) -> None:
    config, notes = chosen(ClusterConfig(kind="auto", gpu_devices=("0",)))
    assert (config.kind, config.gpu_devices) == ("local", ())
    assert notes == (f"Trained on the CPU (cluster.kind=auto): {reason}.",)
    assert chosen(ClusterConfig()) == (ClusterConfig(), ())


def test_cuda_without_a_gpu_is_refused(reason: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError) as caught,
        cluster_of(ClusterConfig(kind="cuda"), Home(str(tmp_path))),
    ):
        pass
    assert str(caught.value) == (
        f"cluster.kind is 'cuda', but {reason}. Set cluster.kind=auto to use GPUs where there are "
        "any, or cluster.kind=local."
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "cuda", "address": "tcp://127.0.0.1:1"}, "cluster.address is for cluster.kind="),
        ({"gpu_devices": ["0"]}, "cluster.gpu_devices is for cluster.kind=cuda"),
        ({"kind": "cuda", "gpu_pool_size": "1GB"}, "needs cluster.gpu_allocator=pool"),
        ({"kind": "cuda", "gpu_memory_limit": "much"}, "'much' is no size of memory"),
        ({"kind": "cuda", "gpu_memory_limit": "auto"}, "'auto' is no size of memory"),
        ({"kind": "cuda", "gpu_devices": ["0", "0"]}, "'0' is named more than once"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ClusterConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("gpu", "options"),
    [
        pytest.param(
            GpuPlan(),
            "--device-memory-limit default --enable-cudf-spill --pre-import cudf,cupy,xgboost "
            "--rmm-async --rmm-release-threshold 0.25 --set-rmm-allocator-for-libs cupy",
            id="defaults",
        ),
        pytest.param(
            GpuPlan(memory_limit="8GB"),
            "--device-memory-limit 8GB --enable-cudf-spill --pre-import cudf,cupy,xgboost "
            "--rmm-async --rmm-release-threshold 1GB --set-rmm-allocator-for-libs cupy",
            id="a limit",
        ),
        pytest.param(
            GpuPlan(allocator="pool", pool_size="20GiB", memory_limit="30GiB", spill=False),
            "--device-memory-limit 30GiB --disable-cudf-spill --pre-import cudf,cupy,xgboost "
            "--rmm-pool-size 20GiB --set-rmm-allocator-for-libs cupy",
            id="pool",
        ),
        pytest.param(
            GpuPlan(allocator="none"),
            "--device-memory-limit default --enable-cudf-spill --pre-import cudf,cupy,xgboost",
            id="none",
        ),
    ],
)
def test_options_of_workers_that_others_start(gpu: GpuPlan, options: str) -> None:
    assert " ".join(dask_cuda_options(gpu)) == options


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    """A cluster of this module's: nobody has ended or stopped any of its workers."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
def test_the_workers_say_what_device_they_have(two_workers: Any) -> None:
    config = ClusterConfig(kind="address", address=two_workers.scheduler.address)
    assert device_of(two_workers, config) == "cpu"
    first, *others = sorted(two_workers.nthreads())
    two_workers.run(as_dask_cuda_does, workers=[first])
    try:
        with pytest.raises(UserError) as caught:
            device_of(two_workers, config)
        assert str(caught.value) == (
            f"1 of the cluster's 2 workers have a GPU, and {', '.join(others)} none: the workers "
            "of a training are all of one kind. Start all of them with `dask cuda worker`, or all "
            "with `dask worker`."
        )
        two_workers.run(as_dask_cuda_does)
        assert device_of(two_workers, config) == "cuda"
    finally:
        two_workers.run(as_before)


def as_dask_cuda_does(dask_worker: Any) -> None:
    plugin = type("CUDFSetup", (WorkerPlugin,), {"__module__": "dask_cuda.plugins"})
    dask_worker.plugins["of dask-cuda"] = plugin()


def as_before(dask_worker: Any) -> None:
    dask_worker.plugins.pop("of dask-cuda", None)


def a_sample_now_and_then() -> dict[str, float]:
    """Every other one fails, as NVML does at times."""
    looks.append(time.monotonic())
    if len(looks) % 2:
        raise OSError("GPU is lost")
    return a_sample()


looks: list[float] = []


@pytest.mark.parametrize(
    ("visible", "found"),
    [("0,1", ["0", "1"]), ("GPU-5e, 2", ["GPU-5e", "2"]), ("-1", []), ("1,-1,0", ["1"]), ("", [])],
)
def test_the_gpus_that_are_visible(
    visible: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == found


def a_sample() -> dict[str, float]:
    return {"host/gpu_0_utilization_percentage": 97.0}


@pytest.mark.slow
def test_what_gpus_do_reaches_the_run(two_workers: Any) -> None:
    heard: list[tuple[int, dict[str, float]]] = []

    def on_sample(second: int, values: dict[str, float]) -> None:
        heard.append((second, values))

    with watching_gpus(two_workers, on_sample, a_sample_now_and_then, period_s=0.05):
        until = time.monotonic() + 120
        while len(heard) < 8 and time.monotonic() < until:
            time.sleep(0.05)
    assert len(heard) >= 8
    assert all(values == a_sample() for _, values in heard)
    assert heard[0][0] >= 0
    time.sleep(0.3)
    count = len(heard)
    time.sleep(0.3)
    assert len(heard) == count

"""What the workers' GPUs do during a run: NVML's numbers, by way of Dask's event log."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client, WorkerPlugin
from distributed.worker import Worker

PERIOD_S = 5.0
TOPIC = "boostline-gpu"

_log = logging.getLogger(__name__)

Sample = Callable[[], dict[str, float]]


@contextmanager
def watching_gpus(
    client: Client,
    on_sample: Callable[[int, dict[str, float]], None],
    sample: Sample | None = None,
    period_s: float = PERIOD_S,
) -> Iterator[None]:
    """While the block runs, `on_sample` gets each worker's numbers every `period_s` seconds.

    They come with the whole seconds since the start, in the thread of Dask's event loop. `sample`
    runs on the workers; `sample_gpu` where it is None.
    """
    began = time.monotonic()

    def heard(event: tuple[float, Mapping[str, Any]]) -> None:
        # beside what a worker tells Dask puts who told it
        on_sample(int(time.monotonic() - began), event[1]["sample"])

    client.subscribe_topic(TOPIC, heard)
    client.register_plugin(GpuTelemetry(sample or sample_gpu, period_s))
    try:
        yield
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(GpuTelemetry.name)
            client.unsubscribe_topic(TOPIC)


class GpuTelemetry(WorkerPlugin):
    """Tells every period, from a thread of its own, what `sample` finds on this worker."""

    name = "boostline-gpu-telemetry"
    idempotent = False  # a run before may have left one, of other settings

    def __init__(self, sample: Sample, period_s: float) -> None:
        self._sample, self._period_s = sample, period_s

    def setup(self, worker: Worker) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[worker], daemon=True)
        self._thread.start()

    def teardown(self, worker: Worker) -> None:
        self._ended.set()

    def _run(self, worker: Worker) -> None:
        while not self._ended.wait(self._period_s):
            try:
                sample = self._sample()
            except Exception as error:  # noqa: BLE001
                # a driver that is busy: the next look may be luckier
                _log.debug("The GPU was not looked at: %s", error)
                continue
            worker.log_event(TOPIC, {"sample": sample})


def sample_gpu() -> dict[str, float]:
    """Of this process's GPU, by MLflow's names for such numbers behind the host's.

    What a GPU does not tell is left out: a part of one (MIG) knows its memory, not its power.
    """
    import pynvml

    pynvml.nvmlInit()
    try:
        gpu = _handle(pynvml)
        place = f"{socket.gethostname()}/gpu_{pynvml.nvmlDeviceGetIndex(gpu)}"
        found: dict[str, float] = {}
        for look in (_utilization, _memory, _power):
            with suppress(pynvml.NVMLError_NotSupported):
                found |= look(pynvml, gpu)
        return {f"{place}_{name}": value for name, value in found.items()}
    finally:
        pynvml.nvmlShutdown()


def _utilization(nvml: Any, gpu: Any) -> dict[str, float]:
    return {"utilization_percentage": float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)}


def _memory(nvml: Any, gpu: Any) -> dict[str, float]:
    memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
    return {
        "memory_usage_megabytes": memory.used / 1e6,
        "memory_usage_percentage": 100 * memory.used / memory.total,
    }


def _power(nvml: Any, gpu: Any) -> dict[str, float]:
    return {"power_usage_watts": nvml.nvmlDeviceGetPowerUsage(gpu) / 1000}


def _handle(nvml: Any) -> Any:
    """The first that CUDA_VISIBLE_DEVICES names, which Dask-CUDA turns so for each worker."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(first))
    return nvml.nvmlDeviceGetHandleByUUID(first)

"""What a run takes of its machines, as MLflow's system metrics: driver, workers and this host.

Workers tell Dask's scheduler of their memory and processors with every heartbeat; asking it costs
one small message. The samples go the way of all metrics, so an MLflow server may be away.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from mlflow.exceptions import MlflowException

from tasks.engine.workers import alive_workers
from tasks.tracking import Recorder

# MLflow's own variables
ENABLED = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
INTERVAL = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
LONGEST_SECONDS = 10.0
STOP_SECONDS = 2.0
PREFIX = "system"
MEGABYTE = 1e6


@contextmanager
def system_metrics(recorder: Recorder, client: Any) -> Iterator[None]:
    """Samples within the block: every second at first, every 10 s after a hundred.

    MLflow's variables set another interval, or none at all.
    """
    if os.environ.get(ENABLED, "").lower() in ("false", "0"):
        yield
        return
    ended = threading.Event()
    sampler = threading.Thread(
        target=_sample, args=(recorder, client, ended), name="system-metrics", daemon=True
    )
    sampler.start()
    try:
        yield
    finally:
        ended.set()
        sampler.join(STOP_SECONDS)


def _sample(recorder: Recorder, client: Any, ended: threading.Event) -> None:
    driver, began = psutil.Process(), time.monotonic()
    driver.cpu_percent(), psutil.cpu_percent()  # since when the first sample counts
    step = 0
    with suppress(MlflowException, OSError):  # it may be away just now
        # a run that goes on adds to what it has
        step = recorder.last_step(f"{PREFIX}/driver/memory_megabytes")
    while not ended.wait(_interval(time.monotonic() - began)):
        step += 1
        values = {**driver_sample(driver), **worker_sample(client)}
        if ended.is_set():
            return  # the recording may be over
        recorder.metrics({f"{PREFIX}/{name}": round(v, 1) for name, v in values.items()}, step)


def _interval(elapsed: float) -> float:
    """Seconds to the next sample: a short run has a few, a night's not too many."""
    with suppress(KeyError, ValueError):
        return max(0.1, float(os.environ[INTERVAL]))
    return min(LONGEST_SECONDS, max(1.0, elapsed / 10))


def driver_sample(driver: psutil.Process) -> dict[str, float]:
    """Of the flow's process (100% is one processor) and of this host (100% is all of it)."""
    return {
        "driver/cpu_percentage": driver.cpu_percent(),
        "driver/memory_megabytes": driver.memory_info().rss / MEGABYTE,
        "host/cpu_percentage": psutil.cpu_percent(),
        "host/memory_percentage": psutil.virtual_memory().percent,
    }


def worker_sample(client: Any) -> dict[str, float]:
    """Of all workers together, and of the one with most memory; empty without a scheduler."""
    try:
        workers = alive_workers(client).values()
    except Exception:  # noqa: BLE001
        # Dask's client raises what its loop does; the run itself will tell of a lost scheduler
        return {}
    metrics = [worker["metrics"] for worker in workers if "memory" in worker.get("metrics", {})]
    if not metrics:
        return {}
    memory = [float(each["memory"]) / MEGABYTE for each in metrics]
    spilled = sum(float(each.get("spilled_bytes", {}).get("disk", 0)) for each in metrics)
    return {
        "workers/number": float(len(metrics)),
        "workers/cpu_percentage": sum(float(each["cpu"]) for each in metrics),
        "workers/memory_megabytes": sum(memory),
        "workers/largest_memory_megabytes": max(memory),
        "workers/spilled_megabytes": spilled / MEGABYTE,
    }

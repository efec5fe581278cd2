"""The kind `local`: worker processes on this machine."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import dask
from distributed import Client, LocalCluster
from distributed.deploy.cluster import Cluster

from infra import forking
from infra.cluster_plan import (
    SCHEDULER_SETTINGS,
    WORKER_SETTINGS,
    ClusterError,
    ClusterPlan,
    environment,
    fresh_log,
    worker_variables,
)
from infra.cluster_watch import watching
from infra.growing import growing
from infra.nanny import PatientNanny
from infra.worker_process import WORKER_LOG_VARIABLE

# A worker in the middle of a task that does not end is killed after 0.8 of this.
CLOSE_TIMEOUT_S = 1.5
# Nothing at the end of a run waits longer for a scheduler that does not answer.
CLOSING_LIMIT_S = 15


class OutlivesWorkers:
    """Makes a local cluster survive the loss of workers, several at once or one again and again.

    Dask's own raises KeyError for a lost worker that its picture of the scheduler, refreshed once
    a second, does not show yet or any more; closing it then fails and the exit takes 10 s longer.
    And it looks `distributed.deploy.lost-worker-timeout` after each loss whether the worker is
    there: one that was lost again just before was closed for good while it started. Here nobody
    looks, since the nannies, which start them, live in this very process.
    """

    def _update_worker_status(self, op: str, msg: Any) -> None:
        with suppress(KeyError):
            Cluster._update_worker_status(cast(Cluster, self), op, msg)


class WorkerProcesses(OutlivesWorkers, LocalCluster):
    """Worker processes for the CPU."""


@contextmanager
def open_local(plan: ClusterPlan) -> Iterator[Client]:
    """Start worker processes on this machine, with nannies that start a lost one again."""
    if plan.address is not None:
        raise ClusterError(
            f"cluster.address={plan.address!r} is given but cluster.kind is 'local', which starts "
            f"its own. Set cluster.kind='address', or remove cluster.address."
        )
    with processes_here(plan, "local", plan.workers, WorkerProcesses) as client:
        yield client


@contextmanager
def processes_here(
    plan: ClusterPlan, kind: str, workers: int, start: Callable[..., LocalCluster]
) -> Iterator[Client]:
    """The client of the cluster that `start` makes of Dask's arguments, closed at the end.

    Raises:
        ClusterError: the `workers` did not come up within `plan.start_timeout_s`.
    """
    variables = worker_variables(plan.threads, plan.environment, quiet=plan.quiet)
    forked = kind == "local" and forking.begin(variables, plan.imports)
    if plan.quiet:
        variables[WORKER_LOG_VARIABLE] = str(fresh_log(plan.log_folder / "workers.log"))
    settings = {
        **SCHEDULER_SETTINGS,
        **WORKER_SETTINGS,
        **(forking.SETTINGS if forked else {}),
        "distributed.nanny.pre-spawn-environ": variables,
        "distributed.comm.timeouts.connect": f"{plan.start_timeout_s}s",
    }
    with ExitStack() as stack:
        # The environment wins over Dask's settings, and nannies write theirs into it.
        stack.enter_context(environment(variables, "PYTHONHASHSEED"))
        stack.enter_context(dask.config.set(settings))
        try:
            cluster = start(
                n_workers=workers,
                threads_per_worker=plan.threads,
                memory_limit=plan.memory_limit,
                host="127.0.0.1",
                # Given even without a dashboard: the scheduler's health page would take port 8787.
                dashboard_address=f"127.0.0.1:{plan.dashboard_port}",
                scheduler_kwargs={"dashboard": plan.dashboard},
                local_directory=str(plan.scratch_folder),
                worker_class=PatientNanny,
                start_limit=max(plan.worker_ttl_s, plan.start_timeout_s / 2),
                death_timeout=plan.start_timeout_s,
                silence_logs=False,
                preload=["infra.worker_process"],
                env=dict(os.environ) if forked else None,
            )
            stack.enter_context(_closing(cluster))
            client = stack.enter_context(Client(cluster, timeout=plan.start_timeout_s))
            client.wait_for_workers(workers, timeout=plan.start_timeout_s)
        except Exception as error:
            cause = str(error).rstrip(".") or type(error).__name__
            raise ClusterError(
                f"The {kind} cluster of {workers} workers did not come up within "
                f"{plan.start_timeout_s:g} s (cluster.start_timeout): {cause}. "
                f"What Dask said is in {plan.log_folder}."
            ) from error
        stack.enter_context(watching(client, plan))
        stack.enter_context(growing(client, cluster, plan))
        yield client


@contextmanager
def _closing(cluster: LocalCluster) -> Iterator[None]:
    async def close_workers() -> None:
        nannies = cluster.workers.values()
        await asyncio.gather(
            *(nanny.close(timeout=CLOSE_TIMEOUT_S) for nanny in nannies), return_exceptions=True
        )
        # A scheduler that has not noticed yet would wait for ever to retire who is gone.
        scheduler = cluster.scheduler
        assert scheduler is not None
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

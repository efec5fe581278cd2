"""Watching an open cluster: what falls silent is treated as lost, on every kind of cluster.

Dask notices a silent worker after up to twice its `worker-ttl`, a running scheduler has a setting
of its own for it (300 s by default), and nothing in Dask notices a frozen scheduler or a cluster
whose last worker is gone: work then waits for ever.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client

from infra.cluster_plan import ClusterError, ClusterPlan

PERIOD_S = 1.0
# How long one question to the scheduler may take, and a nanny to end a worker.
ANSWER_S = 5.0
END_WORKER_S = 15.0


def workers_of(client: Any) -> dict[str, Any]:
    """What the scheduler knows of its workers, by address.

    `client.scheduler_info` may return the client's own periodic answer, without any worker.
    """
    workers: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return workers


@contextmanager
def watching(client: Client, plan: ClusterPlan) -> Iterator[None]:
    """While the block runs, silent workers are ended, and a cluster that is of no use any more.

    Raises:
        ClusterError: the scheduler was lost or froze, or no worker was left; in place of what the
            block raised because of it.
    """
    watch = _Watch(client, plan)
    thread = threading.Thread(target=watch.run, name="cluster-watch", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if verdict := watch.verdict():
            raise ClusterError(verdict) from error
        raise
    finally:
        watch.ended.set()
        thread.join(PERIOD_S)


class _Watch:
    def __init__(self, client: Client, plan: ClusterPlan) -> None:
        self.ended = threading.Event()
        self._client = client
        self._plan = plan
        self._address = plan.address or "this host"
        self._verdict: str | None = None
        # By worker: when the scheduler last heard of it, and the seconds that it is silent since.
        self._silence: dict[str, tuple[float, float]] = {}
        self._looked = time.monotonic()
        self._unanswered_s = self._useless_s = 0.0

    def run(self) -> None:
        while not self.ended.wait(PERIOD_S) and self._verdict is None:
            # A host that slept, or a process that was stopped, has not heard of anybody: time
            # counts as far as we looked.
            passed = min(time.monotonic() - self._looked, PERIOD_S + ANSWER_S)
            self._looked = time.monotonic()
            self._look(passed)

    def verdict(self) -> str | None:
        """Why the cluster is of no use any more, if it is."""
        if self._verdict is None and self._client.status not in ("running", "newly-created"):
            return self._lost()
        return self._verdict

    def _look(self, passed: float) -> None:
        try:
            info = self._ask("identity", ANSWER_S, n_workers=-1)
        except (OSError, RuntimeError):  # Dask's lost connections and TimeoutError are OSErrors
            self._unanswered_s += passed
            if self._client.status != "running":
                self._give_up(self._lost())
            elif self._unanswered_s > self._plan.worker_ttl_s:
                self._give_up(
                    f"The Dask scheduler at {self._address} (cluster.address) has not answered for "
                    f"{self._plan.worker_ttl_s:g} s (cluster.worker_ttl). Start it again; the same "
                    "command then goes on from what was done."
                )
            return
        self._unanswered_s = 0.0
        workers: dict[str, Any] = info["workers"]
        self._check_useful(workers, passed)
        if silent := self._silent(workers, min(passed, 2 * PERIOD_S)):
            with suppress(OSError, RuntimeError):
                self._ask(
                    "restart_workers",
                    END_WORKER_S + ANSWER_S,
                    workers=silent,
                    timeout=END_WORKER_S,
                    wait_for_workers=False,
                    on_error="return",
                    stimulus_id="boostline-silent",
                )

    def _ask(self, operation: str, limit: float, **arguments: Any) -> Any:
        scheduler = getattr(self._client, "scheduler", None)
        if scheduler is None:
            raise RuntimeError("the client is closed")
        return self._client.sync(getattr(scheduler, operation), callback_timeout=limit, **arguments)

    def _silent(self, workers: dict[str, Any], passed: float) -> list[str]:
        before, self._silence = self._silence, {}
        for address, worker in workers.items():
            heard = float(worker["last_seen"])
            known, silent_s = before.get(address, (heard, 0.0))
            self._silence[address] = (heard, silent_s + passed if heard == known else 0.0)
        limit = self._plan.worker_ttl_s
        return [address for address, (_, silent_s) in self._silence.items() if silent_s > limit]

    def _check_useful(self, workers: dict[str, Any], passed: float) -> None:
        if any(worker["status"] == "running" for worker in workers.values()):
            self._useless_s = 0.0
            return
        self._useless_s += passed
        limit = self._plan.start_timeout_s
        if self._useless_s <= limit:
            return
        if workers:
            self._give_up(
                f"All workers of the cluster have taken no work for {limit:g} s "
                "(cluster.start_timeout): they hold more memory than Dask lets them start new work "
                "with. Give them more memory (cluster.memory_limit, or --memory-limit of `dask "
                "worker`)."
            )
        else:
            self._give_up(
                f"The cluster has no workers left, and none came within {limit:g} s "
                "(cluster.start_timeout)."
            )

    def _lost(self) -> str:
        return (
            f"The connection to the Dask scheduler at {self._address} (cluster.address) was lost. "
            "Start it again; the same command then goes on from what was done."
        )

    def _give_up(self, verdict: str) -> None:
        """Everything that waits for the cluster ends with an error."""
        self._verdict = verdict
        with suppress(OSError, RuntimeError):
            self._client.sync(_abandon, self._client, callback_timeout=ANSWER_S)


async def _abandon(client: Client) -> None:
    if client.scheduler_comm is not None:
        client.scheduler_comm.abort()
    # The client cancels its futures before the calls that wait for an answer fail.
    await asyncio.sleep(0.1)
    await client.rpc.close()

"""Clusters that grow with the work there is for them, and keep their size while they train."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from distributed import Client

from infra.cluster_plan import ClusterPlan
from infra.cluster_watch import workers_of

# An idle worker is given back after so many looks of a second each: a new one takes as long.
PATIENCE_LOOKS = 30
POLL_S = 0.25


class Scalable(Protocol):
    """A cluster as Dask has it; what `adapt` returns has a `stop`."""

    def scale(self, n: int) -> Any: ...

    def adapt(self, *, minimum: int, maximum: int, wait_count: int) -> Any: ...


@dataclass
class _Growth:
    cluster: Scalable
    least: int
    most: int
    limit_s: float
    adapting: Any = None

    def adapt(self) -> None:
        self.adapting = self.cluster.adapt(
            minimum=self.least, maximum=self.most, wait_count=PATIENCE_LOOKS
        )

    def hold(self) -> None:
        self.adapting.stop()
        self.cluster.scale(self.most)


_growths: WeakKeyDictionary[Client, _Growth] = WeakKeyDictionary()


@contextmanager
def growing(client: Client, cluster: Scalable, plan: ClusterPlan) -> Iterator[None]:
    """While the block runs, the cluster grows up to `max_workers`, where the plan has them."""
    if plan.max_workers is None or plan.max_workers == plan.workers:
        yield
        return
    growth = _Growth(cluster, plan.workers, plan.max_workers, plan.start_timeout_s)
    growth.adapt()
    _growths[client] = growth
    try:
        yield
    finally:
        del _growths[client]
        growth.adapting.stop()


@contextmanager
def at_full_size(client: Client) -> Iterator[None]:
    """While the block runs, a cluster that grows has all its workers, and none is taken away.

    A training goes on with the workers that it began with: one that came later would be of no use,
    and one taken away would cost the rounds since the last checkpoint. Where not all come within
    `start_timeout`, those that did are enough.
    """
    growth = _growths.get(client)
    if growth is None:
        yield
        return
    growth.hold()
    until = time.monotonic() + growth.limit_s
    while len(workers_of(client)) < growth.most:
        if time.monotonic() > until:
            break
        time.sleep(POLL_S)
    yield
    # after an error the cluster is about to be closed
    growth.adapt()

"""What falls silent or never comes is noticed, on every kind of cluster."""

import os
import signal
import time
from typing import cast

import pytest
from distributed import Client, LocalCluster

from infra.cluster import ClusterError, open_cluster

pytestmark = pytest.mark.slow


def test_a_frozen_worker_is_replaced() -> None:
    with open_cluster(workers=2, threads=1, worker_ttl_s=5) as client:
        before = client.run(os.getpid)
        frozen, other = before.values()
        os.kill(frozen, signal.SIGSTOP)
        began = time.monotonic()
        while set(client.scheduler_info()["workers"]) & set(before) == set(before):
            assert time.monotonic() - began < 60
            time.sleep(0.05)
        # a nanny gives its worker 4 s to end by itself
        assert 2.5 < time.monotonic() - began < 40
        deadline = time.monotonic() + 120
        while frozen in (pids := _pids(client)) or len(pids) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert other in pids


def _pids(client: Client) -> set[int]:
    """Of the workers; none while one is going."""
    try:
        return set(client.run(os.getpid).values())
    except OSError:
        return set()


def test_healthy_workers_stay_though_we_slept() -> None:
    """As a laptop does: nobody was heard of meanwhile, which says nothing of them."""
    with open_cluster(workers=1, threads=1, worker_ttl_s=4) as client:
        before = client.run(os.getpid)
        cast(LocalCluster, client.cluster).sync(_block, 7.0)
        time.sleep(2)
        assert client.run(os.getpid) == before


async def _block(seconds: float) -> None:
    """Holds up the loop of the client and of the scheduler, as the sleep of their host does."""
    time.sleep(seconds)


def test_a_cluster_whose_workers_are_all_gone() -> None:
    with open_cluster(workers=1, threads=1) as owner:
        address = owner.scheduler_info()["address"]
        message = r"^The cluster has no workers left, and none came within 2 s \(cluster\.start_ti"
        with pytest.raises(ClusterError, match=message):
            _wait_in_vain(owner, address)


def _wait_in_vain(owner: Client, address: str) -> None:
    with open_cluster(kind="address", address=address, start_timeout_s=2) as client:
        cast(LocalCluster, owner.cluster).scale(0)
        time.sleep(1)
        client.submit(sum, [1, 2], pure=False).result(timeout=120)

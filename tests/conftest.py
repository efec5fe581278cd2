"""What tests share: real worker processes, started once, and the real tables beside the checkout."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# before libgomp loads, here and in every process started from here
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of housing.csv and diamonds.csv."""
    if not (SHARED / "housing.csv").exists():
        pytest.skip(f"the tables of {SHARED} are not here")
    return SHARED


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Four worker processes of one thread each, with nannies that replace a lost one."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=4,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            memory_limit=0,
            local_directory=str(tmp_path_factory.mktemp("dask")),
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="session")
def dask_client(dask_cluster: Any) -> Iterator[Any]:
    from distributed import Client

    with Client(dask_cluster) as client:
        yield client

"""Where a run takes place: the cluster of a configuration, with the project's own errors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.engine.config import ClusterConfig
from tasks.engine.errors import RunError
from tasks.engine.home import Home

# what workers need in any case: loaded while the first task is still on its way
AHEAD = ("xgboost", "pandas", "pyarrow.parquet", "tasks.engine.profile")


@contextmanager
def cluster_of(config: ClusterConfig, home: Home) -> Iterator[Any]:
    """The Dask client of the configured cluster; the user's folder is last on its workers' path.

    Raises:
        RunError: the cluster did not come up.
    """
    from infra.cluster import ClusterError, open_cluster, send_user_folder

    try:
        with open_cluster(
            kind=config.kind,
            workers=config.workers,
            threads=config.threads,
            memory_limit=config.memory_limit or "auto",
            address=config.address,
            local_directory=home.local / "dask",
            dashboard=config.dashboard,
            start_timeout_s=config.start_timeout,
            worker_ttl_s=config.worker_ttl,
            imports=AHEAD,
        ) as client:
            send_user_folder(client, os.getcwd())
            yield client
    except ClusterError as error:
        raise RunError(str(error)) from error


def tracking_of(experiment: str, home: Home) -> str:
    """MLflow's tracking URI, with its store and the experiment ready.

    Raises:
        RunError: the embedded store could not be made.
    """
    from infra.mlflow_store import MlflowStoreError, open_experiment, prepare_mlflow

    try:
        uri = prepare_mlflow(home.local)
    except MlflowStoreError as error:
        raise RunError(str(error)) from error
    open_experiment(uri, experiment, home.local)
    return uri

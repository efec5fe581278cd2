"""Training from the command line: services first, then the flow in this process."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from infra.mlflow_store import MlflowStoreError, prepare_mlflow, quiet_mlflow
from infra.prefect_server import PrefectServerError, start_embedded_prefect
from tasks.engine.config import Config
from tasks.engine.errors import RunError
from tasks.engine.home import Home

if TYPE_CHECKING:
    from flows.pipeline import Outcome


def run(config: Config, home: Home, verbose: bool = False) -> "Outcome":
    """The whole flow, with the embedded Prefect server where none is configured.

    Raises:
        UserError: the input is wrong.
        RunError: a service or the cluster did not come up, or was lost.
    """
    try:
        with (
            start_embedded_prefect(home.local) as server,
            ThreadPoolExecutor(max_workers=1) as beside,
        ):
            store = beside.submit(prepare_mlflow, home.local)
            # Prefect reads its settings when it is imported
            os.environ.update(server.environment(verbose=verbose))
            from flows.pipeline import train_flow

            quiet_mlflow()
            store.result()
            server.wait()
            with server.flow_settings():
                return train_flow(config, home.root)
    except (PrefectServerError, MlflowStoreError) as error:
        raise RunError(str(error)) from error

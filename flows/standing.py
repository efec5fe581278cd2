"""What `boostline up` runs for a home, taken by the other commands as a matter of course."""

import os
import sys
from typing import Any

from infra.asking import is_url, without_user
from infra.services import Services, running
from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.config import Config
from tasks.engine.errors import UserError
from tasks.engine.home import Home

UP = "boostline up"
# Where MLflow's pages are for people, if it is not where runs are sent to.
MLFLOW_PAGES = "BOOSTLINE_MLFLOW_PAGES"
_ADDRESSES = {
    "PREFECT_API_URL": "http://127.0.0.1:4200/api, or unset it to use the embedded server",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000, or unset it to use a file in the home",
}


def standing(home: Home) -> Services | None:
    """The services that are up for this home, all of them ready; None where there are none."""
    services = running(home.local)
    return services if services and services.ready else None


def use_services(home: Home) -> str:
    """Points this process at the home's services, except where its environment names others.

    To be called before Prefect is imported. Returns what it points to, for the screen.

    Raises:
        UserError: what the environment names is no URL.
    """
    for name, way_out in _ADDRESSES.items():
        given = os.environ.get(name, "")
        if given.startswith(("http://", "https://")) and not is_url(given):
            raise UserError(
                f"{name}={without_user(given)!r} is not a URL. Write it as in {way_out}. / and @ "
                "of a password are %2F and %40."
            )
    services = standing(home)
    if services is None:
        return ""
    used = []
    if not os.environ.get("PREFECT_API_URL"):
        os.environ["PREFECT_API_URL"] = services.prefect
        used.append("Prefect")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        used.append("MLflow")
        # a file stays what it is: the run goes on where its server ends
        if not services.store.startswith("sqlite"):
            os.environ["MLFLOW_TRACKING_URI"] = services.store
    return f"{' and '.join(used)} of boostline up" if used else ""


def in_place(config: Config, home: Home) -> Config:
    """The configuration, on the cluster of the home's services where it does not say where to run.

    A cluster of its own is opened all the same where the workers might not do what new ones would:
    they are of another Python environment, or have the user's own loader imported as it was.
    """
    from tasks.engine.sources import is_loader  # brings pyarrow along, which status needs not

    services = standing(home)
    if services is None or not services.dask or services.prefix != sys.prefix:
        return config
    if is_loader(config.data.source):
        return config
    if config.cluster != ClusterConfig():
        return config
    shared = ClusterConfig(kind="address", address=services.dask)
    return config.model_copy(update={"cluster": shared})


def prefect_of(home: Home) -> tuple[str, str]:
    """The address of Prefect's API that commands use here, and what names it; empty for none."""
    if configured := os.environ.get("PREFECT_API_URL"):
        return configured, "PREFECT_API_URL"
    services = standing(home)
    return (services.prefect, UP) if services else ("", "")


def mlflow_of(home: Home) -> tuple[str, str]:
    """The address of MLflow's server, or the store's URI, as `prefect_of`."""
    if configured := os.environ.get("MLFLOW_TRACKING_URI"):
        return configured, "MLFLOW_TRACKING_URI"
    services = standing(home)
    return (services.mlflow, UP) if services else ("", "")


def dashboard_of(config: Config, home: Home, client: Any) -> str:
    """The address of the Dask cluster's pages; empty where it serves none."""
    services, cluster = standing(home), config.cluster
    if services and cluster.kind == "address" and cluster.address == services.dask:
        return services.dashboard
    # the scheduler of Kubernetes has none
    return str(client.dashboard_link) if cluster.dashboard and cluster.kind != "kubernetes" else ""


def mlflow_pages(home: Home, tracking_uri: str) -> str:
    """The address of MLflow's pages for a store, as people reach it; empty where no server is known
    to show them.
    """
    if configured := os.environ.get(MLFLOW_PAGES):
        return configured.rstrip("/")
    if tracking_uri.startswith("http"):
        return tracking_uri.rstrip("/")
    services = standing(home)
    return services.mlflow if services and services.store == tracking_uri else ""

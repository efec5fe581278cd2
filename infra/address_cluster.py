"""The kind `address`: a scheduler that runs already, with the workers that it has."""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from distributed import Client
from distributed.versions import VersionMismatchWarning

from infra.cluster_plan import ClusterError, ClusterPlan
from infra.cluster_watch import watching

# Packages that must agree between us and a running cluster: the first three or nothing works, the
# rest or results differ.
SAME_VERSIONS = ("python", "dask", "distributed", "numpy", "pandas", "pyarrow", "xgboost")


@contextmanager
def open_address(plan: ClusterPlan) -> Iterator[Client]:
    """Connect to a running scheduler that has at least one worker."""
    if plan.address is None:
        raise ClusterError(
            "cluster.kind='address' needs cluster.address, as in 'tcp://scheduler:8786'."
        )
    if plan.environment:
        raise ClusterError(
            f"The workers at {plan.address} (cluster.address) run already: their environment "
            f"({', '.join(sorted(plan.environment))}) is set where they are started."
        )
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VersionMismatchWarning)
                client = stack.enter_context(Client(plan.address, timeout=plan.start_timeout_s))
        except (OSError, ValueError) as error:  # distributed's CommClosedError is an OSError
            raise ClusterError(
                f"No Dask scheduler answers at {plan.address} (cluster.address) after "
                f"{time.monotonic() - started:.0f} s: {error}. Start one with `dask scheduler`, "
                f"correct cluster.address, or allow more time with cluster.start_timeout "
                f"(now {plan.start_timeout_s:g} s)."
            ) from error
        remaining = plan.start_timeout_s - (time.monotonic() - started)
        try:
            client.wait_for_workers(1, timeout=max(remaining, 1))
        except TimeoutError as error:
            raise ClusterError(
                f"The Dask scheduler at {plan.address} (cluster.address) has no worker after "
                f"{plan.start_timeout_s:g} s (cluster.start_timeout). Start one with "
                f"`dask worker {plan.address}`."
            ) from error
        stack.enter_context(watching(client, plan))
        _check_versions(client, plan.address)
        yield client


def _check_versions(client: Client, address: str) -> None:
    """Refuse a cluster whose packages are not ours.

    Raises:
        ClusterError: names each package, our version and that of each host that differs.
    """
    # Dask's own list lacks what decides our results.
    extra = [name for name in SAME_VERSIONS if name not in ("python", "dask", "distributed")]
    found = cast(dict[str, Any], client.get_versions(check=False, packages=extra))
    if different := different_versions(found):
        raise ClusterError(
            f"The versions of the cluster at {address} (cluster.address) are not ours: "
            f"{'; '.join(different)}. Install the same constraints.txt on every host."
        )


def different_versions(found: Mapping[str, Any]) -> list[str]:
    """Return one phrase for each package that differs in what `Client.get_versions` found."""
    ours = found["client"]
    different: dict[str, str] = {}
    hosts = {f"worker {name}": version for name, version in found["workers"].items()}
    hosts["scheduler"] = found["scheduler"]
    for host, theirs in hosts.items():
        for package in SAME_VERSIONS:
            mine, other = _version(ours, package), _version(theirs, package)
            # A scheduler needs no pandas, XGBoost and the like.
            if mine != other and not (host == "scheduler" and other is None):
                different[package] = f"{package} {mine} here, {other} on {host}"
    return list(different.values())


def _version(versions: Mapping[str, dict[str, str | None]], package: str) -> str | None:
    if package == "python":
        full = versions["host"]["python"] or ""
        return ".".join(full.split(".")[:2])
    return versions["packages"].get(package)

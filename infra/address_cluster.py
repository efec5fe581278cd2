"""The kind `address`: a scheduler that runs already, with the workers that it has."""

import socket
import ssl
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from distributed import Client
from distributed.comm.addressing import get_address_host_port
from distributed.security import Security
from distributed.versions import VersionMismatchWarning

from infra.cluster_plan import ClusterError, ClusterPlan, ClusterSettingError, TlsFiles
from infra.cluster_watch import watching

# Packages that must agree between us and a running cluster: the first three or nothing works, the
# rest or results differ.
SAME_VERSIONS = ("python", "dask", "distributed", "numpy", "pandas", "pyarrow", "xgboost")
HANDSHAKE_S = 5.0


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
    security = _security(plan.tls, plan.address) if plan.tls else None
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VersionMismatchWarning)
                client = stack.enter_context(_client(plan, security))
        except (OSError, ValueError) as error:  # distributed's CommClosedError is an OSError
            raise ClusterError(
                f"No Dask scheduler answers at {plan.address} (cluster.address) after "
                f"{time.monotonic() - started:.0f} s: {error}. Start one with `dask scheduler`, "
                f"correct cluster.address (tls:// with cluster.tls_ca and the others for one that "
                f"speaks TLS), or allow more time with cluster.start_timeout "
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


def _client(plan: ClusterPlan, security: Security | None) -> Client:
    return Client(plan.address, timeout=plan.start_timeout_s, security=security)


def _security(files: TlsFiles, address: str) -> Security:
    """What Dask needs for TLS in both directions.

    Raises:
        ClusterSettingError: a file can't be read or is no certificate, or the scheduler refuses
            ours: Dask itself would try till `start_timeout` and tell of that.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    # Dask's certificates say who belongs to the cluster, not which host this is.
    context.check_hostname = False
    try:
        context.load_verify_locations(cafile=files.ca)
        context.load_cert_chain(files.cert, files.key)
    except (OSError, ValueError) as error:
        where = f"{files.ca}, {files.cert} and {files.key}"
        raise ClusterSettingError(
            f"TLS can't be set up from {where} (cluster.tls_ca, cluster.tls_cert, "
            f"cluster.tls_key): {getattr(error, 'strerror', None) or error}."
        ) from None
    _check_handshake(context, address)
    return Security(
        require_encryption=True,
        tls_ca_file=files.ca,
        tls_client_cert=files.cert,
        tls_client_key=files.key,
    )


def _check_handshake(context: ssl.SSLContext, address: str) -> None:
    """One handshake; a scheduler that is not there (yet) is left to Dask."""
    try:
        with (
            socket.create_connection(get_address_host_port(address), HANDSHAKE_S) as plain,
            context.wrap_socket(plain) as wrapped,
        ):
            # A server of TLS 1.3 refuses a client's certificate after the client's own handshake.
            wrapped.recv(1)
    except ssl.SSLError as error:
        raise ClusterSettingError(
            f"The scheduler at {address} (cluster.address) and this host don't trust each other: "
            f"{error.reason or error}. The certificates of both (cluster.tls_cert here) must be "
            "signed by the CA of cluster.tls_ca, and be valid today."
        ) from None
    except OSError:
        return


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

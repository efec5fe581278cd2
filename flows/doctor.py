"""What is wrong with this machine's set-up, and the command that mends it."""

import importlib.metadata
import os
import platform
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit
from uuid import uuid4

import psutil

from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.config import Config
from tasks.engine.home import Home
from tasks.engine.secrets import without_secrets

PYTHONS = ("3.11", "3.12", "3.13")
PACKAGES = ("boostline", "prefect", "mlflow", "dask", "distributed", "pandas", "pyarrow")
XGBOOSTS = ("xgboost", "xgboost-cu13", "xgboost-cu12", "xgboost-cpu")
LEAST_FREE_BYTES = 2_000_000_000
ANSWER_SECONDS = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where it is as it should be."""

    what: str
    state: str
    remedy: str = ""


def examine(config: Config, home: Home) -> list[Finding]:
    """Looks at the installation, the home, and every service that is configured."""
    return [*_installation(), *_home(home), *_services(), *_cluster(config)]


def _installation() -> Iterator[Finding]:
    version = platform.python_version()
    supported = version.rpartition(".")[0] in PYTHONS
    yield Finding(
        "Python",
        version,
        "" if supported else f"Use one of Python {', '.join(PYTHONS)}: python3.12 -m venv .venv",
    )
    there = {name: found for name in PACKAGES if (found := _version(name))}
    yield Finding("Packages", ", ".join(f"{name} {found}" for name, found in there.items()))
    boosters = [f"{name} {found}" for name in XGBOOSTS if (found := _version(name))]
    remedy = ""
    if len(boosters) != 1:
        remedy = (
            "Exactly one distribution of XGBoost must be installed: pip uninstall -y "
            f"{' '.join(XGBOOSTS)}, then pip install -c constraints.txt -e ."
        )
    yield Finding("XGBoost", ", ".join(boosters) or "not installed", remedy)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _home(home: Home) -> Iterator[Finding]:
    folder = home.local
    above = next(path for path in (folder, *folder.parents) if path.exists())
    probe = above / f".boostline-{uuid4().hex}"
    remedy = ""
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        remedy = f"It can't be written ({error.strerror}): set BOOSTLINE_HOME to a folder of yours."
    yield Finding("Home", str(home.root), remedy)
    free = shutil.disk_usage(above).free
    yield Finding(
        "Disk",
        f"{free / 1e9:,.1f} GB free",
        "" if free >= LEAST_FREE_BYTES else "Make room: boostline clean --older-than 7d",
    )


def _services() -> Iterator[Finding]:
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    if tracking.startswith("http"):
        yield _service(
            "MLflow",
            tracking,
            "/health",
            "/api/2.0/mlflow/experiments/search?max_results=1",
            "Start it with --app-name basic-auth, on loopback, or behind TLS.",
        )
    elif tracking:
        yield Finding("MLflow", without_secrets(tracking))
    else:
        yield Finding("MLflow", "embedded (MLFLOW_TRACKING_URI is not set)")
    api = os.environ.get("PREFECT_API_URL", "")
    if api:
        yield _service(
            "Prefect",
            api,
            "/health",
            "/admin/version",
            "Set PREFECT_SERVER_API_AUTH_STRING for the server and PREFECT_API_AUTH_STRING here, "
            "or start it with --host 127.0.0.1.",
        )
    else:
        yield Finding("Prefect", "embedded (PREFECT_API_URL is not set)")


def _service(name: str, url: str, health: str, inside: str, remedy: str) -> Finding:
    """Whether a service answers, and whether a stranger on another host could use it."""
    base, shown = url.rstrip("/"), without_secrets(url)
    parts = urlsplit(base)
    if _status(base + health) is None:
        variable = {"MLflow": "MLFLOW_TRACKING_URI", "Prefect": "PREFECT_API_URL"}[name]
        return Finding(name, f"{shown} does not answer", f"Start it, or correct {variable}.")
    bare = f"{parts.scheme}://{parts.hostname}:{parts.port or _port(parts.scheme)}{parts.path}"
    anyone = _status(bare + inside) == 200
    reachable = _reached_from_outside(parts.hostname or "", parts.port or _port(parts.scheme))
    if reachable and anyone:
        return Finding(name, f"{shown} is open: anyone who reaches {reachable} may use it", remedy)
    if reachable and parts.scheme == "http":
        return Finding(
            name, f"{shown} sends passwords in clear text to {reachable}", "Put it behind TLS."
        )
    return Finding(name, f"{shown}, {'no password, loopback only' if anyone else 'with password'}")


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _status(url: str) -> int | None:
    """The HTTP status without any credentials; None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ssl.SSLError, ValueError):
        return None


def _reached_from_outside(host: str, port: int) -> str:
    """The address at which others reach the service, or nothing where they can't."""
    try:
        resolved = socket.gethostbyname(host)
    except OSError:
        return ""
    if not resolved.startswith("127."):
        return f"{host}:{port}"
    for address in _own_addresses():
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            continue
        return f"{address}:{port}"
    return ""


def _own_addresses() -> list[str]:
    """This host's addresses that are not loopback."""
    return [
        found.address
        for addresses in psutil.net_if_addrs().values()
        for found in addresses
        if found.family == socket.AF_INET and not found.address.startswith("127.")
    ]


def _elsewhere(cluster: ClusterConfig) -> Finding:
    """Workers that Kubernetes or Slurm starts for a run."""
    from infra.cluster import EXTRAS

    if find_spec(EXTRAS[cluster.kind]) is None:
        return Finding(
            "Dask",
            f"cluster.kind={cluster.kind} needs a package that is not installed",
            f"pip install 'boostline[{cluster.kind}]'",
        )
    if cluster.kind == "slurm" and not shutil.which("sbatch"):
        return Finding("Dask", "Slurm's sbatch is not on the PATH", "Run it on a login node.")
    started = "pods of Kubernetes" if cluster.kind == "kubernetes" else "jobs of Slurm"
    return Finding("Dask", f"{cluster.workers} {started}, started for each run")


def _cluster(config: Config) -> Iterator[Finding]:
    cluster = config.cluster
    if cluster.kind in ("kubernetes", "slurm"):
        yield _elsewhere(cluster)
        return
    if cluster.kind != "address" or not cluster.address:
        yield Finding("Dask", f"{cluster.workers} workers of our own, on loopback")
        return
    shown, parts = without_secrets(cluster.address), urlsplit(cluster.address)
    host, port = parts.hostname or "", parts.port or 8786
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        yield Finding(
            "Dask",
            f"{shown} does not answer ({error})",
            "Start it with `dask scheduler`, or correct cluster.address.",
        )
        return
    outside = _reached_from_outside(host, port)
    if outside and parts.scheme != "tls":
        yield Finding(
            "Dask",
            f"{shown} is open: anyone who reaches {outside} may run code there",
            "Start scheduler and workers with --tls-ca-file, --tls-cert and --tls-key, and set "
            "cluster.tls_ca, cluster.tls_cert and cluster.tls_key.",
        )
        return
    yield Finding("Dask", f"{shown}, {'TLS' if parts.scheme == 'tls' else 'loopback only'}")

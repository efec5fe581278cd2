"""What is wrong with this machine's set-up, and the command that mends it."""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit
from uuid import uuid4

import fsspec
import psutil
from packaging.requirements import Requirement

from flows.reach import ANSWER_SECONDS, port_of, reached_from_outside, status
from flows.standing import UP, in_place, mlflow_of, prefect_of, standing
from infra.up import Ports, is_taken, listener_of
from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.config import Config
from tasks.engine.home import Home
from tasks.engine.secrets import without_secrets
from tasks.figures import amount
from tasks.ledger import entries

PYTHONS = ("3.11", "3.12", "3.13")
PACKAGES = ("boostline", "prefect", "mlflow", "dask", "distributed", "pandas", "pyarrow")
XGBOOSTS = ("xgboost", "xgboost-cu13", "xgboost-cu12", "xgboost-cpu")
LEAST_FREE_BYTES = 2_000_000_000
LEAST_MEMORY_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where it is as it should be."""

    what: str
    state: str
    remedy: str = ""


def examine(config: Config, home: Home) -> list[Finding]:
    """Looks at the installation, the home, and every service that is configured."""
    return [
        *_installation(),
        *_gpu(),
        *_machine(),
        *_home(home),
        *_recordings(home),
        *_services(home),
        *_cluster(config, home),
        *_ports(home),
    ]


def _installation() -> Iterator[Finding]:
    version = platform.python_version()
    supported = version.rpartition(".")[0] in PYTHONS
    yield Finding(
        "Python",
        version,
        "" if supported else f"Use one of Python {', '.join(PYTHONS)}: python3.12 -m venv .venv",
    )
    there = {name: found for name in PACKAGES if (found := _version(name))}
    wrong = [f"{name} {found or 'is missing'}" for name, found in _unfit()]
    yield Finding(
        "Packages",
        f"not what Boostline needs: {', '.join(wrong)}"
        if wrong
        else ", ".join(f"{name} {found}" for name, found in there.items()),
        "pip install -c constraints.txt -e ." if wrong else "",
    )
    boosters = [f"{name} {found}" for name in XGBOOSTS if (found := _version(name))]
    remedy = ""
    if len(boosters) != 1:
        remedy = (
            "Exactly one distribution of XGBoost must be installed: pip uninstall -y "
            f"{' '.join(XGBOOSTS)}, then pip install -c constraints.txt -e ."
        )
    yield Finding("XGBoost", ", ".join(boosters) or "not installed", remedy)


def _unfit() -> Iterator[tuple[str, str | None]]:
    """Packages that are missing, or of a version that Boostline does not take."""
    for line in importlib.metadata.requires("boostline") or ():
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        found = _version(needed.name)
        if found is None or not needed.specifier.contains(found, prereleases=True):
            yield needed.name, found


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
    if "://" in home.root:
        remedy = remedy or _unreached(home.root)
    yield Finding("Home", without_secrets(home.root), remedy)
    free = shutil.disk_usage(above).free
    yield Finding(
        "Disk",
        f"{free / 1e9:,.1f} GB free",
        "" if free >= LEAST_FREE_BYTES else "Make room: boostline clean --older-than 7d",
    )


def _unreached(uri: str) -> str:
    """What to do about a home elsewhere that can't be looked at."""
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        filesystem.exists(path)
    except Exception as error:  # noqa: BLE001
        said = without_secrets(" ".join(str(error).split()).rstrip("."))
        return f"It can't be reached ({said}): correct BOOSTLINE_HOME, or unset it."
    return ""


def _gpu() -> Iterator[Finding]:
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        yield Finding("GPU", "none (there is no nvidia-smi): models train on the processors")
        return
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("GPU", f"nvidia-smi does not answer ({error})", "Look at: dmesg | grep NVRM")
        return
    if found.returncode:
        said = " ".join((found.stdout + found.stderr).split())
        yield Finding("GPU", f"nvidia-smi fails: {said}", "Load the driver: sudo modprobe nvidia")
        return
    cards = "; ".join(found.stdout.split("\n")).strip("; ")
    rapids = _version("cudf-cu13")
    yield Finding("GPU", f"{cards}; RAPIDS {rapids or 'is not installed (the extra `gpu`)'}")


def _machine() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding(
        "Machine",
        f"{amount(os.cpu_count() or 1, 'cores')}, {memory.total / 1e9:,.1f} GB of memory, "
        f"{memory.available / 1e9:,.1f} GB of it free",
        ""
        if memory.available >= LEAST_MEMORY_BYTES
        else "Free some; what uses it: ps aux --sort -rss | head",
    )


def _recordings(home: Home) -> Iterator[Finding]:
    waiting = [entry for entry in entries(home) if not entry.recorded and entry.state != "running"]
    if waiting:
        yield Finding(
            "Runs",
            f"{amount(len(waiting), 'runs')} wait to be recorded by MLflow",
            "Send what is missing: boostline record",
        )


def _services(home: Home) -> Iterator[Finding]:
    yield _mlflow(home)
    api, origin = prefect_of(home)
    if not api:
        yield Finding("Prefect", "embedded (PREFECT_API_URL is not set)")
        return
    yield _service(
        "Prefect",
        api,
        origin,
        "/health",
        "/admin/version",
        "Set PREFECT_SERVER_API_AUTH_STRING for the server and PREFECT_API_AUTH_STRING here, "
        "or start it with: prefect server start --host 127.0.0.1",
    )


def _mlflow(home: Home) -> Finding:
    tracking, origin = mlflow_of(home)
    if tracking.startswith("http"):
        return _service(
            "MLflow",
            tracking,
            origin,
            "/health",
            "/api/2.0/mlflow/experiments/search?max_results=1",
            "Start it on loopback or behind TLS, or with: mlflow server --app-name basic-auth",
        )
    if tracking:
        shown = without_secrets(tracking)
        cause = _database_fails(tracking)
        if cause:
            way_out = f"Start the database, correct {origin}, or do without: unset {origin}"
            return Finding("MLflow", f"{shown} does not answer ({cause})", way_out)
        return Finding("MLflow", shown)
    return Finding("MLflow", "embedded (MLFLOW_TRACKING_URI is not set)")


def _database_fails(uri: str) -> str:
    """Why a store's database can't be used; empty where it can, or where there is none."""
    if "://" not in uri or uri.startswith(("file:", "sqlite:///")):
        return ""
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri)
    except Exception:  # noqa: BLE001
        return ""  # another kind of store, or a driver that MLflow itself will ask for
    try:
        engine.connect().close()
    except sqlalchemy.exc.SQLAlchemyError as error:
        return without_secrets(str(getattr(error, "orig", error)).strip().splitlines()[0])
    finally:
        engine.dispose()
    return ""


def _service(name: str, url: str, origin: str, health: str, inside: str, remedy: str) -> Finding:
    """Whether a service answers, and whether a stranger on another host could use it."""
    base, shown = url.rstrip("/"), without_secrets(url)
    if status(base + health) is None:
        way_out = f"Start it, correct {origin}, or do without: unset {origin}"
        if origin == UP:
            way_out = "Start the services again: Ctrl-C there, then boostline up"
        return Finding(name, f"{shown} does not answer", way_out)
    parts = urlsplit(base)
    anyone = status(base + inside) == 200
    reachable = reached_from_outside(parts.hostname or "", port_of(base))
    if reachable and anyone:
        return Finding(name, f"{shown} is open: anyone who reaches {reachable} may use it", remedy)
    if reachable and parts.scheme == "http":
        return Finding(
            name, f"{shown} sends passwords in clear text to {reachable}", "Put it behind TLS."
        )
    return Finding(name, f"{shown}, {'no password, loopback only' if anyone else 'with password'}")


def _ports(home: Home) -> Iterator[Finding]:
    """The usual ports of `boostline up`, and who has them."""
    if standing(home):
        yield Finding("Ports", "those of boostline up, which runs: see boostline status")
        return
    options = dict(zip(astuple(Ports()), Ports.OPTIONS.values(), strict=True))
    taken = {port: listener_of(port) for port in options if is_taken(port)}
    for port, who in taken.items():
        what = who or "another user's program listens there"
        yield Finding("Ports", f"{port} is taken ({what}): boostline up {options[port]} 0")
    if not taken:
        free = ", ".join(map(str, options))
        yield Finding("Ports", f"{free}: free for boostline up")


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
    if cluster.kind == "kubernetes":
        from infra.cluster import ClusterError
        from infra.kubernetes_cluster import connect

        try:
            connect(cluster.namespace)
        except ClusterError as error:
            said, _, way_out = str(error).partition(". ")
            return Finding("Dask", said, way_out)
    started = "pods of Kubernetes" if cluster.kind == "kubernetes" else "jobs of Slurm"
    return Finding("Dask", f"{cluster.workers} {started}, started for each run")


def _cluster(config: Config, home: Home) -> Iterator[Finding]:
    cluster = in_place(config, home).cluster
    if cluster.kind in ("kubernetes", "slurm"):
        yield _elsewhere(cluster)
        return
    if cluster.kind != "address" or not cluster.address:
        yield Finding("Dask", f"{cluster.workers} workers of our own, on loopback")
        return
    shown, address = without_secrets(cluster.address), cluster.address
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        host, port = parts.hostname or "", parts.port or 8786
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        yield Finding(
            "Dask",
            f"{shown} does not answer ({error})",
            "Start it with `dask scheduler`, or correct cluster.address.",
        )
        return
    outside = reached_from_outside(host, port)
    if outside and parts.scheme != "tls":
        yield Finding(
            "Dask",
            f"{shown} is open: anyone who reaches {outside} may run code there",
            "Start scheduler and workers with --tls-ca-file, --tls-cert and --tls-key, and set "
            "cluster.tls_ca, cluster.tls_cert and cluster.tls_key.",
        )
        return
    yield Finding("Dask", f"{shown}, {'TLS' if parts.scheme == 'tls' else 'loopback only'}")

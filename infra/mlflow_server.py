"""MLflow's server and pages on loopback, over a store that is ready."""

from __future__ import annotations

import http.client
import os
import sys
from pathlib import Path

from infra.asking import LOOPBACK
from infra.mlflow_store import artifact_root
from infra.service_process import STOP_TIMEOUT_S, ServiceProcess, watched

GRACE_S = 5.0


def start_mlflow(home: Path, *, port: int, store: str, startup_timeout_s: float) -> ServiceProcess:
    """Start MLflow's server on `port` of loopback for the store with the URI `store`.

    Artifacts stay files under `home/artifacts`, written by who records and read by the server, so
    that an experiment made through the server can be used without it. Only its own pages may speak
    to it, and only under this host's name.
    """
    home = home.absolute()
    places = [f"{host}:{port}" for host in (LOOPBACK, "localhost")]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    variables |= {
        # By a variable, as it may hold a password: arguments show in the list of processes.
        "MLFLOW_BACKEND_STORE_URI": store,
        # Without its job runners, which judge texts, the server starts in a third of the time.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", LOOPBACK, "--port", str(port), "--uvicorn-opts", "--no-access-log"]
    command += ["--no-serve-artifacts", "--default-artifact-root", artifact_root(home).as_uri()]
    command += ["--allowed-hosts", ",".join(places)]
    command += ["--cors-allowed-origins", ",".join(f"http://{place}" for place in places)]
    return ServiceProcess(
        "MLflow's server",
        watched(command, GRACE_S),
        environment=variables,
        folder=home,
        log_file=home / "mlflow-server.log",
        is_ready=lambda: _is_healthy(port),
        startup_timeout_s=startup_timeout_s,
        way_out="(--timeout).",
        # who watches it needs a moment more to end what is left
        stop_timeout_s=GRACE_S + STOP_TIMEOUT_S,
    )


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

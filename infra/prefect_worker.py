"""A worker of Prefect's that runs deployments of a process pool on this host."""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from infra.asking import NO_ANSWER, ask
from infra.service_process import STOP_TIMEOUT_S, ServiceProcess, watched

# A training that is ended tells Prefect and MLflow so, and closes its cluster.
GRACE_S = 20.0


def start_worker(
    home: Path,
    folder: Path,
    *,
    pool: str,
    api_url: str,
    environment: Mapping[str, str],
    startup_timeout_s: float,
) -> ServiceProcess:
    """Start a worker for `pool`, which is made as a process pool where there is none.

    Args:
        folder: where the runs find what the user has beside the configuration.
        environment: variables of the worker and its runs, beside those of this process; an empty
            one is taken away.
    """
    name = f"boostline-up-{socket.gethostname()}-{os.getpid()}"
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start"]
    command += ["--pool", pool, "--type", "process", "--name", name]
    return ServiceProcess(
        "Prefect's worker",
        watched(command, GRACE_S),
        environment={k: v for k, v in {**os.environ, **environment}.items() if v},
        folder=folder,
        log_file=home / "prefect" / "worker.log",
        is_ready=lambda: name in online(api_url, pool),
        startup_timeout_s=startup_timeout_s,
        way_out="(--timeout).",
        # who watches it needs a moment more to end what is left
        stop_timeout_s=GRACE_S + STOP_TIMEOUT_S,
    )


def online(api_url: str, pool: str) -> list[str]:
    """Names of the workers of a pool whose heartbeat the server hears; none where it can't say."""
    request = urllib.request.Request(
        f"{api_url}/work_pools/{quote(pool, safe='')}/workers/filter",
        data=b"{}",
        headers={"Content-Type": "application/json"},
    )
    try:
        with ask(request, timeout=5) as answer:
            workers = json.load(answer)
    except NO_ANSWER:
        return []
    return [str(worker["name"]) for worker in workers if worker["status"] == "ONLINE"]

"""The deployments as `prefect deploy` makes them on a real server."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tasks.engine.config import Config

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"

DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["deployments"]


@pytest.mark.parametrize("deployment", [pytest.param(d, id=d["name"]) for d in DEPLOYMENTS])
def test_entry_points_and_parameters_are_valid(deployment: dict[str, Any]) -> None:
    path, _, name = deployment["entrypoint"].partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    flow = getattr(module, name)
    assert set(deployment["parameters"]) <= set(flow.parameters.properties)
    Config.model_validate(deployment["parameters"]["config"])


@pytest.mark.slow
def test_they_deploy_from_the_root(prefect_server: Any, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect_server.api_url,
        "PREFECT_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    prefect = [sys.executable, "-m", "prefect"]
    for command in (
        ["work-pool", "create", "boostline", "--type", "process"],
        ["--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--all"],
    ):
        ran = subprocess.run(
            [*prefect, *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    found = httpx.get(
        f"{prefect_server.api_url}/deployments/name/boostline-train/nightly-cpu"
    ).json()
    assert [(s["schedule"]["cron"], s["schedule"]["timezone"]) for s in found["schedules"]] == [
        ("0 3 * * *", "UTC")
    ]
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"

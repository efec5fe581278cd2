"""The deployments as `prefect deploy` makes them on a real server."""

import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from flows.schedule import check_schedule
from tasks.engine.config import Config
from tasks.engine.dates import dated
from tests.conftest import clean_environment

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"
BUSY_S = 120

DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["deployments"]


# what the file's head says to do, up to the commands that need a name of one's own or stay
COMMANDS = re.findall(r"^#   prefect (.*)$", FILE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("deployment", [pytest.param(d, id=d["name"]) for d in DEPLOYMENTS])
def test_entry_points_and_parameters_are_valid(deployment: dict[str, Any]) -> None:
    flow: Any = load_flow_from_entrypoint(deployment["entrypoint"])
    assert set(deployment["parameters"]) <= set(flow.parameters.properties)
    config = Config.model_validate(deployment["parameters"]["config"])
    dated(config, date(2026, 11, 24))
    flow.validate_parameters(deployment["parameters"])
    for schedule in deployment["schedules"]:
        check_schedule(schedule["cron"], schedule["timezone"])
        assert schedule["timezone"] == config.data.timezone


def test_each_kind_of_place_has_a_deployment() -> None:
    kinds = {
        d["name"]: d["parameters"]["config"].get("cluster", {}).get("kind") for d in DEPLOYMENTS
    }
    assert kinds == {"nightly-cpu": None, "nightly-gpu": "cuda", "kubernetes": "kubernetes"}
    models = [d["parameters"]["config"]["track"]["model"] for d in DEPLOYMENTS]
    assert len(set(models)) == len(models), "one training per model at a time"


@pytest.fixture(scope="module")
def deployed(standing_server: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a fresh server knows of each deployment once the file's own commands have run."""
    environment = {
        **clean_environment(),
        "PREFECT_API_URL": standing_server,
        "PREFECT_HOME": str(tmp_path_factory.mktemp("home")),
    }
    for command in COMMANDS:
        if command.startswith("worker start"):
            continue
        ran = subprocess.run(
            [sys.executable, "-m", "prefect", *command.split()],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=480,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return {
        d["name"]: httpx.get(
            f"{standing_server}/deployments/name/boostline-train/{d['name']}"
        ).json()
        for d in DEPLOYMENTS
    }


@pytest.mark.slow
def test_they_deploy_from_the_root(deployed: Any, standing_server: str) -> None:
    for wanted in DEPLOYMENTS:
        found = deployed[wanted["name"]]
        assert [(s["schedule"]["cron"], s["schedule"]["timezone"]) for s in found["schedules"]] == [
            (s["cron"], s["timezone"]) for s in wanted["schedules"]
        ]
        assert found["parameters"] == wanted["parameters"]
        assert sorted(found["tags"]) == sorted(wanted["tags"])
        assert found["job_variables"] == wanted["work_pool"]["job_variables"]
        assert found["global_concurrency_limit"]["limit"] == 1
        # a folder to stand in, but in the pod whose image has none of this host's
        steps = found["pull_steps"] or []
        assert len(steps) == (wanted["name"] != "kubernetes")
        for step in steps:
            (folder,) = step.values()
            assert folder == {"directory": str(ROOT)}
        assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    pools = httpx.post(f"{standing_server}/work_pools/filter", json={}).json()
    ours = {
        p["name"]: (p["type"], p["concurrency_limit"]) for p in pools if "boostline" in p["name"]
    }
    assert ours == {
        "boostline": ("process", None),
        "boostline-gpu": ("process", 1),
        "boostline-kubernetes": ("process", None),
    }


@pytest.mark.slow
def test_the_parameters_are_a_form(deployed: Any) -> None:
    schema = deployed["nightly-cpu"]["parameter_openapi_schema"]
    assert schema["required"] == ["config"]
    top = schema["properties"]
    assert [*sorted(top, key=lambda name: top[name]["position"])] == ["config", "home", "date"]
    assert all(parameter["description"] for parameter in top.values())
    sections = schema["definitions"]["Config"]["properties"]
    for section, field in Config.model_fields.items():
        model: Any = field.annotation
        assert sections[section]["title"] == section
        shown = schema["definitions"][sections[section]["$ref"].rpartition("/")[2]]
        assert shown["description"]
        ordered = sorted(
            shown["properties"], key=lambda name: shown["properties"][name]["position"]
        )
        assert ordered == list(model.model_fields)
        for name, setting in model.model_fields.items():
            form = shown["properties"][name]
            assert (form["title"], form["description"]) == (
                name,
                setting.description + " Not set by default." * (setting.default is None),
            )
            # a choice between a type and null would be shown as two tabs
            assert {"type": "null"} not in form.get("anyOf", [])
            default = model.model_construct().model_dump(mode="json")[name]
            assert form.get("default") == default and ("default" in form) == (default is not None)
    boost = schema["definitions"]["BoostConfig"]["properties"]
    bounds = {key: boost["n_estimators"].get(key) for key in ("type", "minimum", "maximum")}
    assert bounds == {"type": "integer", "minimum": 1, "maximum": 100_000}
    assert boost["early_stopping_rounds"]["minimum"] == 1
    assert boost["subsample"]["exclusiveMinimum"] == 0 and boost["subsample"]["maximum"] == 1
    data = schema["definitions"]["DataConfig"]["properties"]
    assert data["format"]["enum"] == ["parquet", "csv", "tsv", "arrow", "json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "status", "told"),
    [
        pytest.param({"data": {"target": None}, "boost": {"max_depth": 4}}, 201, "", id="valid"),
        pytest.param(
            {"boost": {"max_depth": -1}}, 409, "-1 is less than the minimum of 0", id="bounds"
        ),
        pytest.param({"split": {"kind": "none"}}, 409, "'none' is not one of", id="choices"),
        pytest.param({"bost": {}}, 409, "'bost' was unexpected", id="unknown"),
    ],
)
def test_the_server_checks_what_the_form_sends(
    deployed: Any, standing_server: str, config: dict[str, Any], status: int, told: str
) -> None:
    until = time.monotonic() + BUSY_S
    while True:
        answer = httpx.post(
            f"{standing_server}/deployments/{deployed['nightly-cpu']['id']}/create_flow_run",
            json={
                "parameters": {"config": config},
                "state": {
                    "type": "SCHEDULED",
                    "state_details": {"scheduled_time": "2050-01-01T00:00:00Z"},
                },
            },
        )
        # what a server says whose SQLite is busy; Prefect's own clients ask again
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > until:
            break
        time.sleep(1)
    assert answer.status_code == status, answer.text
    assert told in answer.text

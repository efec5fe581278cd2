"""A deployment of one's own configuration, on a real server."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.deploy import absolute
from tasks.engine.config import Config
from tests.conftest import Boostline


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("sales/*.csv", "/here/sales/*.csv"),
        ("/data/a.csv", "/data/a.csv"),
        ("../a.csv", "/a.csv"),
        ("sqlite:///houses.db", "sqlite:////here/houses.db"),
        ("sqlite:////data/houses.db", "sqlite:////data/houses.db"),
        ("sqlite://", "sqlite://"),
        ("s3://bucket/a/", "s3://bucket/a/"),
        ("mine:load", "mine:load"),
        ("demo:regression", "demo:regression"),
    ],
)
def test_paths_are_whole(source: str, expected: str) -> None:
    config = Config.model_validate({"data": {"source": source, "target": "y"}})
    assert absolute(config, Path("/here")).data.source == expected


@pytest.mark.slow
def test_deployed_and_brought_up_to_date(boostline: Boostline, prefect_server: Any) -> None:
    (boostline.folder / "houses.toml").write_text(
        '[data]\nsource = "houses.csv"\ntarget = "price"\n[boost]\nmax_depth = 6\n'
    )
    words = ["deploy", "houses.toml", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin"]
    first = boostline(*words, "--pool", "of-one-test")
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[:2] == [
        "Deployed boostline-train/houses; runs go to the work pool 'of-one-test'.",
        "Made the work pool 'of-one-test' (process): there was none.",
    ]
    assert lines[3].split() == ["It", "runs", "next", "at", "Europe/Berlin", "UTC"]
    times = [line.split() for line in lines[4:7]]
    assert [(row[0], row[3]) for row in times] == [("1", "02:30"), ("2", "02:30"), ("3", "02:30")]
    assert all(row[6] in ("00:30", "01:30") for row in times)
    assert lines[-2:] == [
        "A worker runs it:  prefect worker start --pool of-one-test",
        "Run it now:        prefect deployment run 'boostline-train/houses'",
    ]
    again = boostline(*words, "--pool", "of-one-test", "--set", "boost.max_depth=4")
    assert again.returncode == 0 and "Made the work pool" not in again.stdout, again.stderr
    found = httpx.get(f"{prefect_server.api_url}/deployments/name/boostline-train/houses").json()
    assert found["parameters"] == {
        "config": {
            "data": {"source": str(boostline.folder / "houses.csv"), "target": "price"},
            "boost": {"max_depth": 4},
            "cluster": {},
        },
        "home": str(boostline.home),
    }
    assert found["entrypoint"] == "flows.pipeline.train_flow"
    assert found["work_pool_name"] == "of-one-test"
    schedules = [(s["schedule"]["cron"], s["schedule"]["timezone"]) for s in found["schedules"]]
    assert schedules == [("30 2 * * *", "Europe/Berlin")]
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        pytest.param(
            ["--set", "data.source=postgresql://me:s3cret@db/x", "--set", "data.target=y"],
            {},
            "data.source='postgresql://me:***@db/x' holds a secret, and Prefect keeps parameters "
            "in clear. Write 'postgresql://me:${BOOSTLINE_SOURCE_PASSWORD}@db/x' and set "
            "BOOSTLINE_SOURCE_PASSWORD in the environment of the worker.",
            id="secret",
        ),
        pytest.param(
            [],
            {"PREFECT_API_URL": ""},
            "PREFECT_API_URL is not set: a schedule needs a Prefect server that stays. Start one "
            "with `boostline up` in this home, or with `prefect server start`, then: "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api",
            id="no server",
        ),
        pytest.param(
            ["--name", "a/b"],
            {},
            "The name 'a/b' (--name) may hold none of the characters / % & < >.",
            id="name",
        ),
    ],
)
def test_refused(
    boostline: Boostline, words: list[str], environment: dict[str, str], message: str
) -> None:
    ran = boostline("deploy", *words, **environment)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == [message]

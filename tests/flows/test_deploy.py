"""A deployment of one's own configuration, on a real server."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.deploy import Deployed, absolute, lines
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
    assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    # dates in a source are those of the schedule's clock
    dated = [*words, "--pool", "of-one-test", "--set", "data.source=sales/{date:%Y/%m}.csv"]
    assert boostline(*dated).returncode == 0
    found = httpx.get(f"{prefect_server.api_url}/deployments/name/boostline-train/houses").json()
    assert found["parameters"]["config"]["data"] == {
        "source": f"{boostline.folder}/sales/{{date:%Y/%m}}.csv",
        "target": "price",
        "timezone": "Europe/Berlin",
    }


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
            ["--notify", "ops"],
            {},
            "'ops' names no block. Write its type and its name, as in slack-webhook/ops.",
            id="no block",
        ),
        pytest.param(
            ["--notify", "slack-webhook/ops"],
            {},
            "The Prefect server has no block 'slack-webhook/ops' that notifies. It has none yet. "
            "Make one on its page Blocks, of the type Slack Webhook, Sendgrid Email or Custom "
            "Webhook, say.",
            id="a block that is not there",
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


@pytest.mark.slow
def test_a_server_is_told_to_watch(boostline: Boostline, prefect_server: Any) -> None:
    for _ in range(2):
        ran = boostline("watch")
        assert ran.stdout == "A training without a heartbeat for 100 s is told as crashed.\n"
    found = httpx.post(f"{prefect_server.api_url}/automations/filter", json={}).json()
    assert [a["name"] for a in found] == ["boostline: a silent training has crashed"]
    ran = boostline("watch", "--deployment", "houses")
    assert (ran.returncode, ran.stderr) == (
        2,
        "--deployment says whose runs --notify tells of: name a block with it.\n",
    )


@pytest.mark.parametrize(
    ("server", "is_served", "worker", "now"),
    [
        ("", False, "prefect worker start --pool p", "prefect deployment run 'a/b'"),
        (
            "http://127.0.0.1:4200/api",
            False,
            "PREFECT_API_URL=http://127.0.0.1:4200/api prefect worker start --pool p",
            "PREFECT_API_URL=http://127.0.0.1:4200/api prefect deployment run 'a/b'",
        ),
        (
            "http://127.0.0.1:4200/api",
            True,
            "that of boostline up",
            "PREFECT_API_URL=http://127.0.0.1:4200/api prefect deployment run 'a/b'",
        ),
    ],
    ids=["a server that the shell names", "that of up", "and its worker"],
)
def test_the_commands_that_are_shown_work_in_another_shell(
    server: str, is_served: bool, worker: str, now: str
) -> None:
    deployed = Deployed("a/b", "p", False, "UTC", (), (), server=server, is_served=is_served)
    assert lines(deployed)[-2:] == [
        f"A worker runs it:  {worker}",
        f"Run it now:        {now}",
    ]

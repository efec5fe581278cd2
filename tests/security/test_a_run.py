"""One whole run of a user who has configured nothing: what it wrote and where it listened."""

import base64
import os
import pickle
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from tasks.engine.scoring import Scorer
from tasks.engine.summary import Summary
from tests.conftest import Boostline
from tests.security.hosts import clean_environment
from tests.security.pickles import is_pickle, pickles_in
from tests.security.search import found_in

pytestmark = pytest.mark.slow

SECRETS = {
    "in the source": "source+t0ken/4711",
    "WAREHOUSE_TOKEN": "warehouse-t0ken-4712",
    "AWS_SECRET_ACCESS_KEY": "aws/key+4713/xyz",
}
LOADER = """
import logging
import os
def load():
    token = os.environ["WAREHOUSE_TOKEN"]
    logging.getLogger("distributed.worker").warning("asking with %s", token)
    try:
        raise ConnectionError(f"https://me:{token}@warehouse/ refuses {token}")
    except ConnectionError as error:
        raise ValueError(f"no rows for {token}") from error
"""


@dataclass(frozen=True)
class Run:
    """A training that succeeded, and what was seen of it from outside."""

    boostline: Boostline
    summary: Summary
    said: str
    listening: list[set[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Run:
    """From a database whose URL holds a token, with tokens in the environment."""
    folder = tmp_path_factory.mktemp("run")
    frame = pd.read_csv(shared_data / "diamonds.csv")
    with sqlite3.connect(folder / "stones.db") as database:
        frame.to_sql("stones", database, index=False)
    database.close()
    token = SECRETS["in the source"].replace("/", "%2F").replace("+", "%2B")
    environment = {**clean_environment(), **SECRETS}
    del environment["in the source"]
    boostline = Boostline(folder, environment)
    listening: list[set[str]] = []
    with boostline.start(
        *("train", "--target", "price", "--set", "data.table=stones", "--summary", "summary.json"),
        *("--set", "track.model=stones", "--set", "boost.max_depth=8"),
        *("--data", f"sqlite:///file:{folder}/stones.db?mode=ro&uri=true&token={token}"),
    ) as process:
        while process.poll() is None:
            listening.append(_listening(process.pid))
            time.sleep(0.2)
        out, err = process.communicate()
    assert process.returncode == 0, err
    summary = Summary.model_validate_json((folder / "summary.json").read_bytes())
    return Run(boostline, summary, out + err, listening)


def _listening(pid: int) -> set[str]:
    """Addresses that the process and those below it listen on, with the device behind a %."""
    try:
        root = psutil.Process(pid)
        pids = {root.pid, *(child.pid for child in root.children(recursive=True))}
    except psutil.Error:
        return set()
    shown = subprocess.run(["ss", "-tlnpH"], capture_output=True, text=True, check=False).stdout
    return {
        line.split()[3] for line in shown.splitlines() if any(f"pid={pid}," in line for pid in pids)
    }


def test_it_listens_on_loopback_alone(run: Run) -> None:
    seen = set().union(*run.listening)
    if not seen:
        pytest.skip("the command ss (iproute2) shows no sockets here")
    # of XGBoost, by a group of two: it listens everywhere but for us
    assert any("%lo:" in address for address in seen)
    safe = ("127.0.0.1:", "[::1]:", "0.0.0.0%lo:", "[::]%lo:")
    open_to_others = [{a for a in found if not a.startswith(safe)} for found in run.listening]
    # one is bound within some milliseconds of its making: no look may see it twice
    twice = [a & b for a, b in pairwise(open_to_others)]
    assert not any(twice), twice


def test_no_secret_is_in_anything_it_wrote(run: Run) -> None:
    assert run.summary.r2 > 0.9
    wanted = [
        *SECRETS.values(),
        *(value.replace("/", "%2F").replace("+", "%2B") for value in SECRETS.values()),
    ]
    boostline = run.boostline
    assert [secret for secret in wanted if secret in run.said] == []
    assert found_in([boostline.folder], wanted) == []
    # the search does find what is there: the reference that took the token's place
    places = {Path(path).name for path, _ in found_in([boostline.home], ["BOOSTLINE_SOURCE_TOKEN"])}
    assert "prefect.db" in places or "prefect.db-wal" in places


def test_no_secret_of_a_loader_that_fails_is_told(run: Run, prefect_server: Any) -> None:
    (run.boostline.folder / "mine.py").write_text(LOADER)
    ran = run.boostline(
        *("train", "--data", "mine:load", "--target", "y", "--verbose"),
        PREFECT_API_URL=prefect_server.api_url,
    )
    assert ran.returncode == 2
    assert "The loader 'mine:load' raised ValueError: no rows for ***" in ran.stderr
    assert [secret for secret in SECRETS.values() if secret in ran.stderr + ran.stdout] == []
    assert "asking with ***" in (run.boostline.home / "dask" / "workers.log").read_text()
    places = [run.boostline.folder, prefect_server.folder]
    assert found_in(places, SECRETS.values()) == []
    # Prefect keeps logs and states: they are there, without the token
    assert found_in([prefect_server.folder], ["no rows for ***"]) != []


def test_nothing_it_wrote_is_pickled(run: Run, tmp_path: Path) -> None:
    assert list(pickles_in([run.boostline.home])) == []
    # the search does find pickles: of every protocol, packed, and in a database
    for protocol in range(6):
        content = pickle.dumps({"a": [1, "b"], "c": (2.5, None)}, protocol)
        assert is_pickle(content) and is_pickle(zlib.compress(content))
        (tmp_path / f"{protocol}.json").write_text(
            f'{{"data": "{base64.b64encode(content).decode()}"}}'
        )
    with sqlite3.connect(tmp_path / "kept.db") as database:
        database.execute("create table kept (value text)")
        database.execute("insert into kept values (?)", [base64.b64encode(content).decode()])
    database.close()
    assert len(list(pickles_in([tmp_path]))) == 7


@pytest.fixture
def artifacts(run: Run) -> Iterator[Path]:
    """The model's files in MLflow's store, put back after the test."""
    (manifest,) = run.boostline.home.glob("artifacts/**/scorer/manifest.json")
    before = {path: path.read_bytes() for path in manifest.parent.iterdir()}
    yield manifest.parent
    for path, content in before.items():
        path.write_bytes(content)


def test_the_model_loads_where_pickles_are_forbidden(run: Run) -> None:
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", f"import mlflow; mlflow.pyfunc.load_model('{_model(run)}')"],
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{run.boostline.home / 'mlflow.db'}",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        },
        cwd=run.boostline.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr


def _model(run: Run) -> str:
    return "models:/stones/1"


def test_a_tampered_model_does_not_predict(run: Run, artifacts: Path, shared_data: Path) -> None:
    booster = artifacts / "booster.ubj"
    content = bytearray(booster.read_bytes())
    booster.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    for name in ("booster.ubj", "manifest.json"):
        ran = run.boostline("predict", "stones", str(shared_data / "diamonds.csv"), "out.csv")
        assert ran.returncode == 2, ran.stderr
        assert f"{name} is not the file that was saved" in ran.stderr
        assert "Traceback" not in ran.stderr and "bug" not in ran.stderr
        assert not (run.boostline.folder / "out.csv").exists()
        # then another model whose own manifest fits: MLflow's tag knows that of the run
        booster.write_bytes(content)
        scorer = Scorer.load(artifacts)
        Scorer(scorer.encoder, scorer.booster, scorer.mean + 1).save(artifacts)

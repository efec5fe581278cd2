"""The flow's own process, the scheduler, memory and disk: what they cost, and what is said."""

import os
import re
import resource
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tasks.engine.home import Home
from tasks.engine.summary import Summary
from tasks.ledger import entries
from tests.conftest import Boostline, clean_environment
from tests.faults.harness import (
    BETWEEN,
    EVERY,
    INGEST,
    RECORDING,
    ROUNDS,
    SCORING,
    address_cluster,
    arguments,
    finished,
    running,
    same,
)
from tests.flows.test_train import mlflow_client

# the first test also makes the table and the undisturbed run
pytestmark = pytest.mark.slow

AT_ONCE = int(os.environ.get("BOOSTLINE_TEST_AT_ONCE", "2"))
FULL_BYTES = 235_000
only_by_command = pytest.mark.skipif(
    "BOOSTLINE_TEST_FAULTS" not in os.environ, reason="takes long: set BOOSTLINE_TEST_FAULTS=all"
)


def test_the_flow_is_killed_in_every_step(
    boostline: Boostline, table: Path, undisturbed: Summary
) -> None:
    """Each time the same command goes on, and does nothing again that was done.

    A checkpoint that was cut short meanwhile is passed over for the one before it.
    """
    kept: dict[str, tuple[int, int]] = {}
    for moment in (INGEST, BETWEEN, SCORING):
        with running(boostline, *arguments(table)) as run:
            assert run.wait_for(moment), moment.name
            run.kill()
            run.kept = kept
            run.check_not_done_again()
        if moment is BETWEEN:
            newest = max(boostline.home.glob("checkpoints/*/round-*.ubj"))
            newest.write_bytes(newest.read_bytes()[:-100])
        kept = finished(boostline.home)
        if moment is BETWEEN:
            kept.pop(str(newest.with_suffix(".json").relative_to(boostline.home)))
    with running(boostline, *arguments(table)) as run:
        run.kept = kept
        found = run.summary()
        run.check_not_done_again()
    same(found, undisturbed)
    assert found.resumed_from_round == ROUNDS


def test_a_model_waits_to_be_recorded_though_who_goes_on_is_interrupted(
    boostline: Boostline, table: Path
) -> None:
    home = Home(str(boostline.home))
    with running(boostline, *arguments(table)) as run:
        assert run.wait_for(RECORDING)
        run.kill()
    shutil.rmtree(boostline.home / "predictions")
    with running(boostline, *arguments(table)) as run:
        assert run.wait_for(SCORING)
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.error
    (entry,) = entries(home)
    assert (entry.state, entry.recorded) == ("killed", False)
    recorded = boostline("record")
    assert recorded.stdout.startswith(f"Recorded: MLflow run {entry.mlflow_run_id}, models:/m-")
    client = mlflow_client(boostline.home)
    assert client.get_run(str(entry.mlflow_run_id)).info.status == "FINISHED"


def test_the_next_command_tells_of_a_run_that_died(mlflow_store: Path, tmp_path: Path) -> None:
    """Whichever it is: on a server of our own, which was not there in between."""
    boostline = Boostline(tmp_path, clean_environment(), mlflow_store)
    with boostline.start("train", "--set", "boost.n_estimators=100000") as process:
        until = time.monotonic() + 360
        while not list(boostline.home.glob("checkpoints/*/*.json")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.kill()
        process.communicate()
    (entry,) = entries(Home(str(boostline.home)))
    client, mlflow_run = mlflow_client(boostline.home), str(entry.mlflow_run_id)
    assert client.get_run(mlflow_run).info.status == "RUNNING"
    ran = boostline("clean")
    assert ran.returncode == 0, ran.stderr
    assert client.get_run(mlflow_run).info.status == "FAILED"
    with closing(sqlite3.connect(boostline.home / "prefect" / "prefect.db")) as store:
        states = store.execute(
            "select flow_run.state_type, flow_run_state.message from flow_run "
            "join flow_run_state on flow_run.state_id = flow_run_state.id"
        ).fetchall()
    assert states == [("CRASHED", "Its process died before the run had ended.")]
    log = boostline.home / "prefect" / "server.log"
    written = log.stat().st_mtime_ns
    assert boostline("clean").stderr == ""
    assert log.stat().st_mtime_ns == written  # nothing is left to tell: no server starts


@pytest.mark.long
def test_the_scheduler_is_killed(boostline: Boostline, table: Path, undisturbed: Summary) -> None:
    """The run ends with its cause; the same command on another scheduler goes on."""
    with address_cluster(boostline) as cluster:
        with running(boostline, *arguments(table), *cluster.settings()) as run:
            assert run.wait_for(BETWEEN)
            cluster.scheduler.kill()
            began = time.monotonic()
            assert run.end() == 1
        assert time.monotonic() - began < 80
        assert run.error.splitlines()[-1] == (
            f"The connection to the Dask scheduler at {cluster.address} (cluster.address) was "
            "lost. Start it again; the same command then goes on from what was done."
        )
        run.remember()
        kept = run.kept
    with (
        address_cluster(boostline, name="another") as cluster,
        running(boostline, *arguments(table), *cluster.settings()) as run,
    ):
        run.kept = kept
        found = run.summary()
        run.check_not_done_again()
    same(found, undisturbed)
    # workers that have lost their scheduler may still come to the end
    assert found.resumed_from_round >= 3 * EVERY


@only_by_command
def test_the_scheduler_freezes(boostline: Boostline, table: Path) -> None:
    with (
        address_cluster(boostline) as cluster,
        running(boostline, *arguments(table, cluster__worker_ttl=6), *cluster.settings()) as run,
    ):
        assert run.wait_for(BETWEEN)
        cluster.scheduler.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert run.end() == 1
        assert time.monotonic() - began < 30
        assert run.error.splitlines()[-1] == (
            f"The Dask scheduler at {cluster.address} (cluster.address) has not answered for 6 s "
            "(cluster.worker_ttl). Start it again; the same command then goes on from what was "
            "done."
        )


def test_a_training_that_does_not_fit_the_workers(boostline: Boostline, table: Path) -> None:
    """Not even its libraries: it is said how much was held, and which settings help."""
    with running(boostline, *arguments(table, cluster__memory_limit="165MB")) as run:
        assert run.end() == 1
    message = run.error.splitlines()[-1]
    died = (
        r"The worker tcp://\S+ held 1\d\d MB when it was ended at 95% of its memory limit of "
        r"165 MB \(cluster\.memory_limit\), as 2 did before it, (in training|while it read)"
    )
    refused = (
        r"A share of [\d,]+ rows × \d+ features takes about \d+ MB for labels, margins, gradients "
        r"and histograms, even with its bins on disk, and the worker tcp://\S+ holds 1\d\d MB "
        r"already: its memory limit is 165 MB \(cluster\.memory_limit\)\."
    )
    assert re.match(f"{died}|{refused}", message), run.error
    assert "Give workers more memory (cluster.memory_limit)" in message


@pytest.mark.long
def test_a_training_goes_to_disk(boostline: Boostline, table: Path, undisturbed: Summary) -> None:
    """And goes on there when a worker is killed, whose pages don't outlive it."""
    words = arguments(table, cluster__external_memory="always")
    with address_cluster(boostline) as cluster:
        folder = boostline.folder / "dask"
        with running(boostline, *words, *cluster.settings()) as run:
            assert run.wait_for(BETWEEN)
            assert len(list(folder.rglob("matrix-*/train-*.page"))) == 2
            cluster.workers()[0].kill()
            found = run.summary()
        assert not list(folder.rglob("matrix-*"))
    same(found, undisturbed)
    assert found.recoveries == 1
    assert re.search(r"The bins of the features are\s+read from disk in every round", run.output)
    tags = mlflow_client(boostline.home).get_run(found.mlflow_run_id).data.tags
    assert tags["matrix"] == "external"


@pytest.mark.long
def test_a_full_disk_costs_the_checkpoint(
    boostline: Boostline, table: Path, undisturbed: Summary
) -> None:
    """Files of the workers may grow larger than a part of the predictions, but not much."""
    with running(boostline, *arguments(table)) as run:
        assert run.wait_for(BETWEEN)
        for worker in run.workers():
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (FULL_BYTES, FULL_BYTES))
        found = run.summary()
    same(found, undisturbed)
    assert re.search(
        r"The checkpoint of round [56]0 could not be written: There is no space left", run.output
    )
    assert found.recoveries == 0
    last = max(run.home.glob("checkpoints/*/*.ubj"))
    assert 3 * EVERY <= int(last.stem.removeprefix("round-")) < ROUNDS
    assert last.stat().st_size < FULL_BYTES
    assert not list(run.home.glob("checkpoints/*/*.part"))


@pytest.mark.timeout(180 * AT_ONCE)
def test_first_runs_at_once(boostline_alone: Boostline) -> None:
    """On an empty home, with servers of their own and one key: all finish, with one model."""
    words = ["--set", "cluster.workers=1", "--set", "cluster.threads=1"]
    words += ["--set", "evaluate.bootstrap=100"]
    files = [boostline_alone.folder / f"summary-{number}.json" for number in range(AT_ONCE)]
    started = [boostline_alone.start("train", "--summary", str(file), *words) for file in files]
    limit = time.monotonic() + 170 * AT_ONCE
    errors = [process.communicate(timeout=limit - time.monotonic())[1] for process in started]
    assert [process.returncode for process in started] == [0] * AT_ONCE, errors
    found = [Summary.model_validate_json(file.read_bytes()) for file in files]
    assert len({(each.model_sha256, each.r2, each.dataset_digest) for each in found}) == 1
    assert len({each.mlflow_run_id for each in found}) == AT_ONCE
    client = mlflow_client(boostline_alone.home)
    for each in found:
        assert client.get_run(each.mlflow_run_id).info.status == "FINISHED"

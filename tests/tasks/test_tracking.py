import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from tasks.engine.errors import RunError
from tasks.engine.secrets import without_secrets
from tasks.sending import (
    DIGEST_LENGTH,
    PARAM_LENGTH,
    SCHEMA_LENGTH,
    TAG_LENGTH,
    entity_name,
    send,
)
from tasks.spool import Spool
from tasks.tracking import Recorder, open_run
from tests.mlflow_server import MlflowServer


@pytest.fixture(scope="module")
def store(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copytree(mlflow_store, folder, dirs_exist_ok=True)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    client.create_experiment("homes", artifact_location=str(folder / "artifacts"))
    return client


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # open_run sets them where they are not set; here they end with the test
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def opened(store: MlflowClient, spool: Path, run_id: str | None = None) -> Recorder:
    return open_run(store.tracking_uri, "homes", "night", {"flow": "f1"}, spool, run_id)


def artifacts(client: MlflowClient, run_id: str, folder: str = "") -> list[str]:
    found = []
    for entry in client.list_artifacts(run_id, folder):
        found += artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def history(client: MlflowClient, run_id: str, key: str) -> dict[int, float]:
    points = client.get_metric_history(run_id, key)
    assert len({(p.step, p.timestamp) for p in points}) == len(points)
    return {point.step: point.value for point in points}


def test_the_limits_are_those_of_the_installed_mlflow() -> None:
    assert PARAM_LENGTH == validation.MAX_PARAM_VAL_LENGTH
    assert TAG_LENGTH == validation.MAX_TAG_VAL_LENGTH
    assert DIGEST_LENGTH == validation.MAX_DATASET_DIGEST_SIZE
    assert SCHEMA_LENGTH == validation.MAX_DATASET_SCHEMA_SIZE


def test_everything_arrives(store: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "several" / "deep").mkdir(parents=True)
    (tmp_path / "several" / "deep" / "two.txt").write_text("two")
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([1, 2])
    long = "x" * 9000
    with opened(store, tmp_path / "spool") as recorder:
        recorder.params({"boost": {"max_depth": 3, "eta": None}, "names": ["a", "ä"], "long": long})
        recorder.params({f"many.{i}": i for i in range(250)})
        recorder.tags({"device": "cpu"})
        for step in range(300):
            recorder.metrics({"train/r2": step / 300, "odd=[1]": math.nan}, step)
        recorder.metrics({f"c{i}": i for i in range(1200)}, 5)
        recorder.artifact(tmp_path / "one.txt", "texts")
        (tmp_path / "one.txt").write_text("changed after the call")
        recorder.artifact(tmp_path / "several")
        recorder.text("{}", "profile/profile.json")
        recorder.figure(figure, "plots/learning_curve.png")
        source = "postgresql://me:secret@db/homes"
        recorder.dataset("homes", "d" * 64, source, {"size": "double", "cut": "string"}, 17)
        run_id = recorder.run_id
    run = store.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "night"
    assert run.data.params["boost.max_depth"] == "3"
    assert run.data.params["boost.eta"] == "null"
    assert json.loads(run.data.params["names"]) == ["a", "ä"]
    assert run.data.params["long"] == "x" * 5999 + "…"
    assert [run.data.params[f"many.{i}"] for i in range(250)] == [str(i) for i in range(250)]
    assert (run.data.tags["flow"], run.data.tags["device"]) == ("f1", "cpu")
    assert history(store, run_id, "train/r2") == {step: step / 300 for step in range(300)}
    assert len(store.get_metric_history(run_id, entity_name("odd=[1]"))) == 300
    assert [run.data.metrics[f"c{i}"] for i in range(1200)] == list(range(1200))
    assert artifacts(store, run_id) == [
        "params/long.txt",
        "plots/learning_curve.png",
        "profile/profile.json",
        "several/deep/two.txt",
        "texts/one.txt",
    ]
    root = Path(run.info.artifact_uri)
    assert (root / "texts/one.txt").read_text() == "one"
    assert (root / "params/long.txt").read_text() == long
    assert (root / "plots/learning_curve.png").read_bytes().startswith(b"\x89PNG")
    (taken,) = run.inputs.dataset_inputs
    assert (taken.dataset.name, taken.dataset.digest) == ("homes", "d" * 36)
    assert json.loads(taken.dataset.source) == {"uri": "postgresql://***@db/homes"}
    assert json.loads(taken.dataset.profile or "") == {"num_rows": 17, "num_columns": 2}
    assert {tag.key: tag.value for tag in taken.tags}["digest"] == "d" * 64
    assert not (tmp_path / "spool").exists()


def test_who_asks_for_everything_does_not_wait_for_more_of_it(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.tracking._LINGER", 60.0)
    with opened(store, tmp_path / "spool") as recorder:
        recorder.metrics({"r2": 0.5}, 1)
        assert recorder.flush(10).complete


def test_a_slow_store_is_waited_for_as_long_as_it_answers(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> None:
        time.sleep(0.6)
        send(*arguments)

    with opened(store, tmp_path / "spool") as recorder:
        monkeypatch.setattr("tasks.tracking.send", slow)
        for number in range(4):
            recorder.text("plot", f"plots/{number}.txt")
        assert recorder.flush(2).complete


def test_what_comes_in_meanwhile_is_not_waited_for(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def more(*arguments: Any) -> None:
        send(*arguments)
        if len(told) < 40:
            told.append(1)
            recorder.text("plot", f"plots/more-{len(told)}.txt")

    told: list[int] = []
    with opened(store, tmp_path / "spool") as recorder:
        monkeypatch.setattr("tasks.tracking.send", more)
        recorder.text("plot", "plots/first.txt")
        assert recorder.flush(30).complete
        assert len(told) < 40
        told.extend([1] * 40)


def test_a_wait_has_an_end_where_one_is_set(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(store, tmp_path / "spool") as recorder:
        monkeypatch.setattr("tasks.tracking.send", lambda *arguments: time.sleep(0.5))
        for number in range(40):
            recorder.text("plot", f"plots/{number}.txt")
        began = time.monotonic()
        assert not recorder.flush(30, limit=1).complete
        assert time.monotonic() - began < 10
        recorder.close("KILLED", 30, limit=1)


def test_recording_does_not_wait_for_the_store(store: MlflowClient, tmp_path: Path) -> None:
    with opened(store, tmp_path / "spool") as recorder:
        started = time.monotonic()
        for step in range(1000):
            recorder.metrics({"train/r2": 0.5, "valid/r2": 0.4}, step)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("error", "status"),
    [pytest.param(ValueError, "FAILED", id="error"), (KeyboardInterrupt, "KILLED")],
)
def test_a_run_left_by_an_error_ends_truthfully(
    store: MlflowClient, tmp_path: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), opened(store, tmp_path / "spool") as recorder:
        raise error
    assert store.get_run(recorder.run_id).info.status == status


DIE = """
import os, sys, threading
from pathlib import Path
from typing import Any
import tasks.tracking as tracking
recorder = tracking.open_run(sys.argv[1], "homes", "night", {}, Path(sys.argv[2]))
recorder.metrics({"before": 1.0}, 1)
assert recorder.flush().complete
tracking.send = lambda *_: threading.Event().wait()  # the server hangs from here on
for step in range(50):
    recorder.metrics({"after": float(step)}, step)
recorder.params({"depth": 3})
recorder.text("kept", "kept.txt")
os.write(1, recorder.run_id.encode())
os.kill(os.getpid(), 9)
"""


def test_a_recording_whose_process_was_killed_goes_on(store: MlflowClient, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    died = subprocess.run(
        [sys.executable, "-c", DIE, store.tracking_uri, str(spool)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    run_id = died.stdout
    assert "after" not in store.get_run(run_id).data.metrics
    with (spool / "events.jsonl").open("a") as events:
        events.write('{"kind": "metrics", "items": [["half", 1.0')  # cut short by the death
    # nothing was confirmed since "before": also say that even less was, so that it is sent again
    (spool / "confirmed").write_text("0")
    with opened(store, spool) as recorder:
        assert recorder.run_id == run_id
        recorder.params({"depth": 3})
        recorder.metrics({"after": 50.0}, 50)
    run = store.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"depth": "3"}
    assert history(store, run_id, "before") == {1: 1.0}
    assert history(store, run_id, "after") == {step: float(step) for step in range(51)}
    assert artifacts(store, run_id) == ["kept.txt"]


def test_a_finished_run_can_be_continued_by_its_id(store: MlflowClient, tmp_path: Path) -> None:
    with opened(store, tmp_path / "spool") as recorder:
        recorder.metrics({"r2": 0.1}, 1)
    with opened(store, tmp_path / "spool", recorder.run_id) as again:
        assert store.get_run(again.run_id).info.status == "RUNNING"
        again.metrics({"r2": 0.2}, 2)
    assert again.run_id == recorder.run_id
    assert history(store, again.run_id, "r2") == {1: 0.1, 2: 0.2}
    assert store.get_run(again.run_id).info.status == "FINISHED"


def test_what_mlflow_refuses_is_kept_and_stops_nothing_else(
    store: MlflowClient, tmp_path: Path
) -> None:
    recorder = opened(store, tmp_path / "spool")
    recorder.params({"depth": 3})
    recorder.flush()
    recorder.params({"depth": 4, "eta": 0.1})
    recorder.metrics({"r2": 0.5}, 1)
    recorded = recorder.close("FINISHED")
    assert (recorded.complete, recorded.pending, recorded.refused) == (False, 0, 1)
    assert "Changing param values is not allowed" in (recorded.cause or "")
    run = store.get_run(recorder.run_id)
    assert (run.data.params, run.data.metrics) == ({"depth": "3", "eta": "0.1"}, {"r2": 0.5})
    (refused,) = (tmp_path / "spool" / "refused.jsonl").read_text().splitlines()
    assert json.loads(refused)["items"] == [["depth", "4"]]


def test_a_full_disk_at_the_end_loses_nothing_that_came_before(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = opened(store, tmp_path / "spool")
    recorder.metrics({"r2": 0.5}, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Spool, "append", full)
        disk.setattr(Spool, "confirm", full)  # the thread that sends must survive it
        with pytest.raises(OSError, match="No space left"):
            recorder.close("FINISHED")
    assert history(store, recorder.run_id, "r2") == {1: 0.5}
    # nobody holds the spool, and it knows its run
    assert opened(store, tmp_path / "spool").close("FAILED").complete
    assert store.get_run(recorder.run_id).info.status == "FAILED"


def test_a_spool_has_one_recorder_and_one_run(store: MlflowClient, tmp_path: Path) -> None:
    with opened(store, tmp_path / "spool") as recorder:
        with pytest.raises(RunError, match="Another process records into"):
            opened(store, tmp_path / "spool")
        run_id = recorder.run_id
    with pytest.raises(RuntimeError, match="is closed"):
        recorder.metrics({"late": 1.0})
    with pytest.raises(MlflowException, match="not found"):
        opened(store, tmp_path / "other", "0" * 32)
    # who goes on in it gets a new one, also where it was deleted
    store.delete_run(run_id)
    for gone in ("0" * 32, run_id):
        uri, spool = store.tracking_uri, tmp_path / f"renewed-{gone}"
        with open_run(uri, "homes", "night", {}, spool, gone, renewed=True) as recorder:
            recorder.metrics({"r2": 0.5}, 1)
        assert recorder.run_id != gone
        assert store.get_run(recorder.run_id).data.metrics == {"r2": 0.5}
    store.restore_run(run_id)
    interrupted = opened(store, tmp_path / "third")
    interrupted.tags({"a": "b"})
    interrupted._spool.close()  # as when the process ends without close
    with pytest.raises(RunError, match=f"holds the recording of MLflow run {interrupted.run_id}"):
        opened(store, tmp_path / "third", run_id)


@pytest.mark.parametrize(
    "name",
    ["a/../b", "/a", "", "..", "a" * 300, "a=b", "x\ny", "größe", "a//b", "./a", "ok/a b-c:d"],
)
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    taken = entity_name(name)
    validation._validate_metric_name(taken)
    validation._validate_param(taken, "v")
    assert (taken == name) == (name in ("größe", "ok/a b-c:d"))


def test_secrets_in_urls_are_taken_out() -> None:
    said = "cannot reach https://me:s3cr3t@host/a?b@c or postgresql+psycopg://u@h/d"
    assert (
        without_secrets(said)
        == "cannot reach https://***@host/a?b@c or postgresql+psycopg://***@h/d"
    )


@pytest.mark.slow
def test_a_server_that_is_away_for_some_seconds_loses_nothing(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    recorder = open_run(mlflow_server.uri, "homes", "night", {}, spool)
    for step in range(20):
        recorder.metrics({"r2": step / 100}, step)
        if step == 5:
            recorder.flush()
            mlflow_server.kill()
        time.sleep(0.02)
    recorder.text("plot", "plots/plot.txt")
    recorder.dataset("homes", "d1", "s3://bucket/homes", {"size": "double"}, 3)
    while recorder.state().cause is None:
        time.sleep(0.1)
    assert recorder.state().pending > 0
    mlflow_server.start()
    assert recorder.flush(60).complete
    client = MlflowClient(mlflow_server.uri, mlflow_server.uri)
    assert history(client, recorder.run_id, "r2") == {step: step / 100 for step in range(20)}
    assert artifacts(client, recorder.run_id) == ["plots/plot.txt"]
    assert len(client.get_run(recorder.run_id).inputs.dataset_inputs) == 1

    # away for good, as far as this process can tell: it keeps the rest and says so
    mlflow_server.kill()
    recorder.metrics({"r2": 0.2}, 20)
    assert recorder.last_step("r2") == 20  # of what it has here
    started = time.monotonic()
    recorded = recorder.close("FAILED", timeout=0.5)
    assert time.monotonic() - started < 40
    assert recorded.pending == 2
    assert "refused" in (recorded.cause or "")
    with pytest.raises(
        RunError,
        match=rf"^MLflow at {mlflow_server.uri} did not answer within 0\.1 s \(track\.timeout\): ",
    ):
        open_run(mlflow_server.uri, "homes", "night", {}, spool, timeout=0.1)
    # the server's own store, opened here: the same run, without waiting for a server once more
    uri = f"sqlite:///{mlflow_server.folder / 'mlflow.db'}"
    assert open_run(uri, "homes", "night", {}, spool).close(None).complete
    client = MlflowClient(uri, uri)
    assert client.get_run(recorder.run_id).info.status == "FAILED"
    assert history(client, recorder.run_id, "r2") == {step: step / 100 for step in range(21)}
    assert not spool.exists()

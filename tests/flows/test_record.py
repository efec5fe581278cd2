"""Recordings that wait, finished one by one."""

from pathlib import Path

import pytest

from flows.places import client_of, tracking_of
from flows.record import finish, waiting
from tasks.engine.config import TrackConfig
from tasks.engine.home import Home
from tasks.ledger import entries, under_way
from tasks.tracking import open_run


def test_one_that_can_not_be_finished_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(str(tmp_path))
    experiment = TrackConfig().experiment
    uri = tracking_of(experiment, home)
    client = client_of(uri)
    runs = []
    for name in ("elsewhere", "died-at-once", "died"):
        with under_way(home, name, name) as folder:
            recorder = open_run(uri, experiment, name, {}, folder.spool, None)
            recorder._spool.close()  # as when the process ends without close
            runs.append(recorder.run_id)
            if name == "elsewhere":
                folder.update(mlflow_run_id=recorder.run_id, tracking_uri="http://another")
            if name == "died":
                folder.update(mlflow_run_id=recorder.run_id, tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    client.delete_experiment(found.experiment_id)
    done, errors = finish(home)
    assert done == [] and len(errors) == 3 and len(waiting(home)) == 3
    assert all(f"The run {entry.name}" in str(errors) for entry in entries(home))
    client.restore_experiment(found.experiment_id)
    done, errors = finish(home)
    assert {run.mlflow_run_id for run in done} == set(runs[1:])
    (error,) = errors
    assert "records at http://another" in str(error)
    assert [client.get_run(run).info.status for run in runs] == ["RUNNING", "FAILED", "FAILED"]

"""What is recorded of a run, in a real MLflow store."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.engine.cluster_config import ClusterConfig
from tasks.engine.config import BoostConfig, Config, TrackConfig
from tasks.record import begin, not_taken
from tasks.tracking import Recorded, open_run


@pytest.fixture(scope="module")
def client(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = shutil.copytree(mlflow_store, tmp_path_factory.mktemp("mlflow"), dirs_exist_ok=True)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return MlflowClient(uri, uri)


def test_a_run_may_go_on_with_another_cluster(client: MlflowClient, tmp_path: Path) -> None:
    run_id = None
    for workers in (2, 4):
        config = Config(
            boost=BoostConfig(n_estimators=7), cluster=ClusterConfig(kind="local", workers=workers)
        )
        recorder = open_run(
            client.tracking_uri, "clusters", "night", {}, tmp_path / "spool", run_id
        )
        begin(recorder, config, {}, goes_on=run_id is not None)
        assert recorder.close("FINISHED").complete
        run_id = recorder.run_id
    params = client.get_run(str(run_id)).data.params
    assert (params["cluster.workers"], params["boost.n_estimators"]) == ("2", "7")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Recorded(1, 0, None), "1 entry is missing, and no error was reported."),
        (Recorded(1200, 3, "refused"), "1,203 entries are missing, refused."),
    ],
)
def test_what_was_not_taken_is_told(state: Recorded, said: str, tmp_path: Path) -> None:
    from tasks.engine.home import Home
    from tasks.ledger import under_way

    config = Config(track=TrackConfig(timeout=3))
    with under_way(Home(str(tmp_path)), "one", "key") as folder:
        message = str(not_taken(state, folder, config))
    assert f"whole run: after 3 s (track.timeout) {said} Nothing is lost" in message

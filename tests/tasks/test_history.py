"""What MLflow remembers of runs, from a real store: found by id, its beginning, name, or last."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.engine.config import Config, flatten
from tasks.engine.errors import UserError
from tasks.history import chosen_settings, find_run, last_runs, read_run
from tasks.tracking import Recorder, Status, open_run

Store = tuple[MlflowClient, dict[str, str]]


@pytest.fixture(scope="module")
def store(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two experiments with three runs of ours and one of somebody else's; their ids by name."""
    folder = tmp_path_factory.mktemp("history")
    (folder / "mlflow.db").write_bytes((mlflow_store / "mlflow.db").read_bytes())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    ids = {}

    def record(experiment: str, name: str, status: Status, say: Callable[[Recorder], None]) -> None:
        recorder = open_run(
            uri, experiment, name, {"prefect.flow_run_id": name}, folder / name,
            artifact_location=(folder / "artifacts").as_uri(),
        )  # fmt: skip
        say(recorder)
        assert recorder.close(status).complete
        ids[name] = recorder.run_id

    def good(recorder: Recorder) -> None:
        recorder.params(flatten(Config()) | {"boost.max_depth": 7, "track.model": "houses"})
        recorder.metrics({"test_r2": 0.75}, 3)
        recorder.dataset("rows", "d1", "rows.csv", {"a": "double"}, rows=12)

    record("houses", "good", "FINISHED", good)
    record("houses", "bad", "FAILED", lambda recorder: recorder.tags({"cause": "no target"}))
    record("flats", "good again", "FINISHED", good)
    client.create_run(client.create_experiment("others"), run_name="theirs")
    return client, ids


def test_the_last_runs_of_all_experiments_or_of_one(store: Store) -> None:
    client, ids = store
    lines = last_runs(client, None, 10)
    assert [line.name for line in lines] == ["good again", "bad", "good"]
    assert [line.name for line in last_runs(client, None, 2)] == ["good again", "bad"]
    good, bad = last_runs(client, "houses", 10)[::-1]
    assert (good.run_id, good.state, good.r2, good.rows) == (ids["good"], "finished", 0.75, 12)
    assert (bad.experiment, bad.state, bad.r2, bad.cause) == ("houses", "failed", None, "no target")
    with pytest.raises(UserError) as refused:
        last_runs(client, "house", 10)
    assert str(refused.value) == (
        "There is no experiment 'house' (--experiment). Did you mean 'houses'? MLflow has: "
        "others, flats, houses."
    )


def test_a_run_is_found_by_id_by_its_beginning_by_name_and_as_the_last(store: Store) -> None:
    client, ids = store
    for wanted, name in (
        (ids["good"], "good"),
        (ids["bad"][:12], "bad"),
        ("good", "good"),
        ("last", "good again"),
    ):
        assert find_run(client, wanted).info.run_id == ids[name]
    with pytest.raises(UserError, match=r"^The ids of 3 runs begin with '': .*\. Write more\.$"):
        find_run(client, "")
    with pytest.raises(UserError) as refused:
        find_run(client, "goods")
    assert str(refused.value) == (
        "There is no run 'goods'. Did you mean 'good'? `boostline runs` lists the last ones."
    )


def test_a_page_has_the_settings_that_differ_and_what_is_there(store: Store) -> None:
    client, _ = store
    page = read_run(client, find_run(client, "good"))
    assert page.settings == {"boost.max_depth": "7", "track.model": "houses"}
    assert (page.kept, page.report, page.model_uri) == (None, None, None)


def test_no_default_counts_as_chosen() -> None:
    tags = {"track.tags.team": "valuation", "boost.seed": "0", "split.test": "0.2"}
    assert chosen_settings(tags) == {"track.tags.team": "valuation"}

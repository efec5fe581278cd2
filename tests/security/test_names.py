"""Crafted names: nothing is written or read outside of a run's own places."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from infra.mlflow_store import artifact_root, open_experiment
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.settings import load_config
from tasks.ledger import Entry, entries, under_way
from tasks.spool import Spool
from tests.conftest import Boostline

CLIMBING = ["../../up", "..", "/etc/up", "a/../../../up", "..\\up", "~/up", "$HOME", "%2e%2e/up"]


@pytest.mark.parametrize("name", CLIMBING)
def test_a_file_of_a_spool_has_one_plain_name(name: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    if "/" in name or name == "..":
        with pytest.raises(ValueError, match="is no name of a file"):
            spool.place(name)
    else:
        assert spool.place(name).parent.parent == tmp_path / "spool" / "files"
    spool.close()


@pytest.mark.parametrize("name", ["../up", "a/b", "models:x", "/up"])
def test_a_model_is_no_path(name: str) -> None:
    with pytest.raises(UserError, match=r"track\.model is .*no slash and no colon"):
        load_config(overrides=[f"track.model={name}"])


@pytest.mark.parametrize("name", [".", "..up", "it's", 'a"b'])
def test_a_model_is_a_name_that_mlflow_takes(name: str) -> None:
    with pytest.raises(UserError, match="should have no quotes and not begin with two dots"):
        load_config(overrides=[f"track.model={name}"])


@pytest.fixture(scope="module")
def home(mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with MLflow's store in it."""
    folder = tmp_path_factory.mktemp("home")
    return Path(shutil.copytree(mlflow_store, folder, dirs_exist_ok=True))


@pytest.mark.slow
def test_the_artifacts_of_an_experiment_stay_in_their_folder(home: Path) -> None:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    root = artifact_root(home)
    for name in CLIMBING:
        experiment = client.get_experiment(open_experiment(client, name, home))
        place = Path(os.path.abspath(experiment.artifact_location.removeprefix("file://")))
        assert place.parent == root, name


def test_a_run_is_the_folder_it_was_found_in(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    with under_way(home, "one", "key") as folder:
        folder.update(state="crashed")
        path = folder.path
    assert [entry.name for entry in entries(home)] == ["one"]
    # an entry that names another home's run is not believed
    forged = Entry(name="../../other/runs/two", key="key", flow_run_id="two", state="crashed")
    Home(str(path)).save(forged, "entry.json")
    assert entries(home) == []


def _around(folder: Path) -> set[Path]:
    """What is in the folder, and beside it and its parent, where the names would climb to."""
    beside = (*folder.parent.iterdir(), *folder.parent.parent.iterdir())
    return {*folder.rglob("*"), *beside}


@pytest.mark.slow
def test_a_run_with_crafted_names_writes_in_its_home_alone(
    boostline_beside: Callable[[Path], Boostline], tmp_path: Path
) -> None:
    # so deep that nobody else writes where the names would climb to
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    boostline = boostline_beside(folder)
    draw = np.random.default_rng(0)
    columns = ["../../feature", "/etc/feature", "by/../../x", "..", "target/../../y"]
    frame = pd.DataFrame(draw.normal(size=(400, 5)), columns=columns)
    frame["by/../../x"] = draw.choice(["../../a", "/etc/b", "."], 400)
    data = boostline.folder / "..data..csv"
    frame.to_csv(data, index=False)
    before = _around(boostline.folder)
    summary = boostline.train(
        *("--data", str(data), "--target", "target/../../y", "--set", "boost.n_estimators=5"),
        *("--set", "evaluate.by=['by/../../x']", "--set", "track.experiment='../../up'"),
        *("--set", "track.model='~up $HOME'", "--set", "track.run_name='../../run'"),
        *("--set", 'track.tags={"../../tag" = "../../value"}'),
    )
    ran = boostline("predict", "~up $HOME", str(data), "out.parquet", "--keep", "..")
    assert ran.returncode == 0, ran.stderr
    made = _around(boostline.folder) - before
    ours = {boostline.folder / name for name in ("summary.json", "out.parquet", ".boostline")}
    ours |= {boostline.folder / "bin", boostline.folder / "bin" / "boostline"}
    outside = {path for path in made - ours if boostline.home not in path.parents}
    assert outside == set()
    run = MlflowClient(f"sqlite:///{boostline.home / 'mlflow.db'}").get_run(summary.mlflow_run_id)
    place = Path(run.info.artifact_uri.removeprefix("file://"))
    artifacts = boostline.home / "artifacts"
    assert Path(os.path.abspath(place)).relative_to(artifacts).parts[1:] == (
        summary.mlflow_run_id,
        "artifacts",
    )
    written = [path for path in artifacts.rglob("*") if path.is_file()]
    models = place.parent.parent / "models"
    assert all(place in path.parents or models in path.parents for path in written)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["../../../etc/passwd", "x' OR name LIKE '%", "runs:/x/y", "models:/../1", "a/../../1"]
)
def test_a_model_to_predict_with_is_looked_up_not_opened(
    model: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.predict import run
    from tasks.engine.cluster_config import ClusterConfig
    from tasks.engine.config import DataConfig

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = str(tmp_path / "out.csv")
    with pytest.raises(UserError, match=r"can't be had from sqlite:///"):
        run(model, DataConfig(), out, [], Home(str(home)), ClusterConfig())
    assert list((home / "scored").iterdir()) == []

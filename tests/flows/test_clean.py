"""What `clean` takes and what it leaves."""

import fcntl
import os
import time
from datetime import timedelta
from pathlib import Path

import fsspec
import pytest

from flows.clean import REMOVABLE, Removed, age, remove_old, sentences
from infra.cluster import _scratch_folder
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.ledger import under_way

DAY = 86_400


def put(home: Home, path: str, days: float, content: bytes = b"x" * 1000) -> Path:
    file = Path(home.root) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    then = time.time() - days * DAY
    os.utime(file, (then, then))
    return file


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(str(tmp_path / "home"))


def test_takes_old_entries_of_every_kind_and_says_so(home: Home) -> None:
    for folder in REMOVABLE:
        put(home, f"{folder}/old/deep/part.parquet", 31)
        put(home, f"{folder}/new/part.parquet", 29)
    removed = remove_old(home, timedelta(days=30))
    assert [part.what for part in removed] == list(REMOVABLE.values())
    lines = sentences(removed, home, "30d", False)
    assert lines[0] == "checkpoints                 1         1 kB"
    assert lines[-1] == f"Removed {len(REMOVABLE)} kB in {home.root}."
    for folder in REMOVABLE:
        assert [entry.name for entry in (Path(home.root) / folder).iterdir()] == ["new"]


def test_an_entry_goes_whole_or_stays_whole(home: Home) -> None:
    old = put(home, "checkpoints/k/20.ubj", 90)
    put(home, "checkpoints/k/40.ubj", 2)
    assert remove_old(home, timedelta(days=30)) == []
    assert old.exists()


def test_what_a_recorded_model_needs_is_never_looked_at(home: Home) -> None:
    kept = [
        put(home, path, 4000)
        for path in ("artifacts/1/model/booster.ubj", "mlflow.db", "prefect/prefect.db")
    ]
    assert remove_old(home, timedelta(0)) == []
    assert all(file.exists() for file in kept)


def test_a_run_under_way_keeps_its_files(home: Home) -> None:
    fresh = put(home, "runs/now/spool.jsonl", 0.02)
    old = put(home, "checkpoints/k/20.ubj", 90)
    lock = put(home, "checkpoints/k/run.lock", 90, b"")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert remove_old(home, timedelta(0)) == []
        assert fresh.exists() and old.exists()
    assert remove_old(home, timedelta(0)) == [Removed("checkpoints", 1, 1000)]


def test_the_folder_of_a_cluster_stays_as_long_as_it_stands(home: Home) -> None:
    with _scratch_folder(home.path("dask")) as folder:
        page = put(home, f"dask/{Path(folder).name}/worker-x/page", 90)
        lock = Path(folder, "in-use.lock")
        os.utime(lock, (0, 0))
        assert remove_old(home, timedelta(0)) == []
        assert page.exists()
    assert not Path(folder).exists()


def test_reading_counts_as_use(home: Home) -> None:
    file = put(home, "converted/k/0.parquet", 90)
    os.utime(file, (time.time() - DAY, file.stat().st_mtime))
    assert remove_old(home, timedelta(days=30)) == []


def test_a_dry_run_removes_nothing(home: Home) -> None:
    file = put(home, "converted/k/0.parquet", 90)
    removed = remove_old(home, timedelta(days=30), dry_run=True)
    assert file.exists()
    assert sentences(removed, home, "30d", True) == [
        "converted tables            1         1 kB",
        f"Would remove 1 kB in {home.root}.",
    ]


def test_a_link_is_removed_and_not_what_it_points_to(home: Home, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.csv").write_text("x")
    put(home, "converted/k/0.parquet", 90)
    link = Path(home.root) / "converted" / "k" / "link"
    link.symlink_to(outside)
    then = time.time() - 90 * DAY
    os.utime(link, (then, then), follow_symlinks=False)
    os.utime(outside / "mine.csv", (then, then))
    remove_old(home, timedelta(days=30))
    assert not link.exists()
    assert (outside / "mine.csv").exists()


def test_an_entry_that_is_a_link_stays(home: Home, tmp_path: Path) -> None:
    outside = put(home, "../outside/mine.csv", 90).parent
    link = Path(home.root) / "converted" / "linked"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    then = time.time() - 90 * DAY
    os.utime(link, (then, then), follow_symlinks=False)
    assert remove_old(home, timedelta(days=30)) == []
    assert (link / "mine.csv").exists()


def test_works_on_object_storage() -> None:
    home = Home.at("memory://clean-test")
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/clean-test/converted/k/0.parquet", b"12345")
    stored = filesystem.store["/clean-test/converted/k/0.parquet"]
    assert remove_old(home, timedelta(days=30)) == []
    stored.created -= timedelta(days=31)
    stored.modified -= timedelta(days=31)
    assert remove_old(home, timedelta(days=30)) == [Removed("converted tables", 1, 5)]
    assert not filesystem.exists("/clean-test/converted/k/0.parquet")


def test_an_empty_home_has_nothing_to_remove(home: Home) -> None:
    assert sentences(remove_old(home, timedelta(days=30)), home, "30d", False) == [
        f"Nothing in {home.root} has been unused for 30d."
    ]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        pytest.param("90m", timedelta(minutes=90), id="minutes"),
        pytest.param("12h", timedelta(hours=12), id="hours"),
        pytest.param("30d", timedelta(days=30), id="days"),
        pytest.param(" 2 w ", timedelta(weeks=2), id="weeks"),
    ],
)
def test_ages(text: str, span: timedelta) -> None:
    assert age(text) == span


@pytest.mark.parametrize("text", ["30", "d", "-3d", "1.5d", "1y", ""])
def test_what_is_not_an_age_is_refused(text: str) -> None:
    with pytest.raises(UserError) as refusal:
        age(text)
    assert str(refusal.value) == (
        f"--older-than {text!r} is not an age. Write a whole number and m, h, d or w "
        "(minutes, hours, days, weeks), as in 30d."
    )


def test_what_waits_to_be_recorded_stays_whole(home: Home) -> None:
    with under_way(home, "night", "key"):
        pass
    for path in ("runs/night/findings.json", "runs/other/x", "models/m/booster.ubj", "converted/c"):
        put(home, path, 90)
    for file in (Path(home.root) / "runs" / "night").iterdir():
        os.utime(file, (1, 1))
    removed = remove_old(home, timedelta(days=30))
    assert [(part.what, part.entries) for part in removed] == [("spools of runs", 1)]
    left = sorted(path.name for path in Path(home.root).rglob("*") if path.is_file())
    assert left == ["alive.lock", "booster.ubj", "c", "entry.json", "findings.json"]
    assert sentences(removed, home, "30d", False)[-1] == (
        "1 run kept for `boostline record`, with all that it needs."
    )

"""Checkpoints count only when they verify."""

from pathlib import Path

import pytest

from tasks.engine.checkpoints import Checkpoint, CheckpointStore, History


def checkpoint(rounds: int, stopped: bool = False) -> Checkpoint:
    rmse = tuple(1 / (i + 1) for i in range(rounds))
    return Checkpoint(rounds, b"model %d" % rounds * 50, History(train_rmse=rmse), stopped)


def filled(uri: str, *rounds: int, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(uri, keep)
    for number in rounds:
        store.save(checkpoint(number))
    return store


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = filled(str(tmp_path), 5, 10)
    assert store.latest(100) == checkpoint(10)
    assert store.load(5) == checkpoint(5)


def test_an_empty_or_missing_folder_has_none(tmp_path: Path) -> None:
    assert CheckpointStore(str(tmp_path)).latest(10) is None
    assert CheckpointStore(str(tmp_path / "none")).latest(10) is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("max_rounds", "multiple_of", "found"),
    [
        pytest.param(100, None, 50, id="newest"),
        pytest.param(49, None, 40, id="not beyond what is asked for"),
        pytest.param(100, 20, 40, id="end of a chunk"),
        pytest.param(50, 20, 50, id="complete, though not at the end of a chunk"),
        pytest.param(10, None, None, id="none so early"),
    ],
)
def test_latest(tmp_path: Path, max_rounds: int, multiple_of: int | None, found: int) -> None:
    store = filled(str(tmp_path), 20, 40, 50)
    latest = store.latest(max_rounds, multiple_of)
    assert (latest.rounds if latest else None) == found


def test_one_that_stopped_early_is_complete(tmp_path: Path) -> None:
    store = filled(str(tmp_path), 20)
    store.save(checkpoint(33, stopped=True))
    latest = store.latest(100, 20)
    assert latest is not None and latest.rounds == 33


@pytest.mark.parametrize("suffix", ["ubj", "json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "empty"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, suffix: str, damage: str) -> None:
    store = filled(str(tmp_path), 5, 10)
    file = tmp_path / f"round-000010.{suffix}"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    latest = store.latest(100)
    assert latest is not None and latest.rounds == 5


def test_older_ones_are_removed_and_newer_ones_stay(tmp_path: Path) -> None:
    store = filled(str(tmp_path), 5, 10, 15, 20, keep=2)
    assert store.saved() == [20, 15]
    store.save(checkpoint(10))
    assert store.saved() == [20, 15, 10]
    assert len(list(tmp_path.iterdir())) == 6


def test_on_a_file_system_that_cannot_rename() -> None:
    store = filled("memory://checkpoints", 5, 10)
    latest = store.latest(100)
    assert latest is not None and latest.rounds == 10


def test_history_knows_its_best_round() -> None:
    history = History(train_rmse=(4, 3, 2, 1), valid_rmse=(4, 3, 3, 5))
    assert history.best_rounds() == 2
    assert (history.stops_at(2), history.stops_at(3), history.stops_at(None)) == (4, None, None)
    later = History(train_rmse=(1,) * 7, valid_rmse=(4, 3, 3, 5, 2, 2, 2))
    assert (later.stops_at(1), later.stops_at(2), later.stops_at(3)) == (3, 4, None)
    assert later.first(4) == History(train_rmse=(1,) * 4, valid_rmse=(4, 3, 3, 5))
    assert History(train_rmse=(4, 3)).best_rounds() == 2

"""Whose folder a run goes on in, and when it does not."""

from contextlib import suppress
from pathlib import Path

import pytest

from tasks.engine.home import Home
from tasks.ledger import FINDINGS, Entry, OtherTableError, entries, under_way


class Killed(BaseException):
    """What ends a process leaves its entry as it is."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path))


def dies(home: Home, flow_run: str, key: str, table: str = "") -> None:
    with suppress(Killed), under_way(home, flow_run, key) as folder:
        if table:
            folder.settle(table)
        raise Killed


def test_who_does_the_same_goes_on_in_the_folder_of_who_died(home: Home) -> None:
    dies(home, "one", "key", "table")
    with under_way(home, "two", "another key") as folder:
        assert folder.entry.name == "two"
    with under_way(home, "three", "key") as folder:
        folder.settle("table")
        assert (folder.entry.name, folder.entry.flow_run_id) == ("one", "three")
        with under_way(home, "four", "key") as beside:  # the folder is taken
            assert beside.entry.name == "four"


@pytest.mark.parametrize("again", ["one", "two"], ids=["the same flow run", "another flow run"])
def test_a_table_that_changed_is_another_run(again: str, home: Home) -> None:
    dies(home, "one", "key", "table")
    with under_way(home, again, "key") as folder:
        assert folder.entry.name == "one"
        with pytest.raises(OtherTableError):
            folder.settle("changed")
    with under_way(home, again, "key") as folder:
        folder.settle("changed")
        assert folder.entry.name == ("one-1" if again == "one" else "two")
        name = folder.entry.name
    assert {entry.name for entry in entries(home)} == {"one", name}


def test_a_trained_model_of_the_old_table_waits_to_be_recorded(home: Home) -> None:
    with suppress(Killed), under_way(home, "one", "key") as folder:
        folder.settle("table")
        folder.keep(FINDINGS, Entry(name="", key="", flow_run_id=""))
        raise Killed
    with under_way(home, "two", "key") as folder:
        assert folder.is_trained
        with pytest.raises(OtherTableError, match="`boostline record` records what it trained"):
            folder.settle("changed")


@pytest.mark.parametrize("earlier", [None, "an-mlflow-run"])
def test_a_try_that_recorded_nothing_leaves_what_was_there(earlier: str | None, home: Home) -> None:
    with suppress(Killed), under_way(home, "one", "key") as folder:
        folder.update(mlflow_run_id=earlier)
        raise Killed
    with under_way(home, "two", "key") as folder:
        folder.spool.mkdir()
        folder.give_back("MLflow is away")
    (entry,) = entries(home)
    assert entry.cause == "MLflow is away"
    assert (entry.state, entry.recorded) == (("crashed", False) if earlier else ("failed", True))
    assert folder.spool.exists() is bool(earlier)
    if earlier is None:  # who interrupts it is told so
        with under_way(home, "three", "another") as folder:
            folder.give_back("Interrupted", killed=True)
        assert entries(home)[0].state == "killed"


def test_one_that_died_before_its_table_was_known_is_gone_on_in(home: Home) -> None:
    dies(home, "one", "key")
    with under_way(home, "two", "key") as folder:
        folder.settle("table")
        assert (folder.entry.name, folder.entry.dataset) == ("one", "table")

"""The table of these tests, and the run that nothing disturbed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.engine.summary import Summary
from tests.conftest import Boostline
from tests.faults.harness import arguments, running, write_table


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="session")
def undisturbed(
    table: Path,
    tmp_path_factory: pytest.TempPathFactory,
    boostline_beside: Callable[[Path], Boostline],
) -> Summary:
    place = boostline_beside(tmp_path_factory.mktemp("undisturbed"))
    with running(place, *arguments(table)) as run:
        return run.summary()

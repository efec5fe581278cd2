"""What the tests of bad inputs share."""

from pathlib import Path

import pytest

from tasks.engine.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))

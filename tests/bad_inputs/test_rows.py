"""The list of bad inputs names tests that exist."""

import importlib
import re

import pytest

from tests.bad_inputs.rows import ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=[row.input for row in ROWS])
def test_every_row_is_covered(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        named = re.fullmatch(r"(?:(\w+)/)?(\w+)::(\w+)(?:\[(.+)\])?", test)
        assert named is not None, test
        folder, file, name, case = named.groups()
        module = importlib.import_module(f"tests.{folder or 'bad_inputs'}.{file}")
        marks = getattr(getattr(module, name), "pytestmark", [])
        known = [
            getattr(parameters, "id", None)
            for mark in marks
            if mark.name == "parametrize"
            for parameters in mark.args[1]
        ]
        assert case is None or case in known, f"{test}: {known}"

"""Inputs that look odd and are right: no note, and the model fits them."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.engine.home import Home
from tests.bad_inputs.early import ROWS, columns, csv, parquet, r2_of_all_rows, seen, trained

Make = Callable[[Path], Path]
NUMBERS = list(range(ROWS))


def of_parquet(**more: Any) -> Make:
    return lambda folder: parquet(folder, columns(**more))


def edited(edit: Callable[[bytes], bytes]) -> Make:
    def make(folder: Path) -> Path:
        file = csv(folder, columns())
        file.write_bytes(edit(file.read_bytes()))
        return file

    return make


def with_cell(**text: str) -> Make:
    return lambda folder: csv(folder, columns(), **text)


def beside_marks(folder: Path) -> Path:
    parquet(folder, columns())
    for name in ("_SUCCESS", "t.parquet.tmp", ".t.parquet.crc", "_temporary.parquet"):
        (folder / name).write_bytes(b"")
    return folder


def in_another_order(folder: Path) -> Path:
    table = columns()
    parquet(folder, table, "1.parquet")
    parquet(folder, dict(reversed(table.items())), "2.parquet")
    return folder


def with_empty_row_groups(folder: Path) -> Path:
    table = pa.table(columns())
    folder.mkdir()
    with pq.ParquetWriter(folder / "t.parquet", table.schema) as writer:
        for start, stop in ((0, 30), (30, 30), (30, 60), (60, 60)):
            writer.write_table(table.slice(start, stop - start))
    return folder / "t.parquet"


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        pytest.param(beside_marks, {}, id="marks beside data"),
        pytest.param(in_another_order, {}, id="columns in another order"),
        pytest.param(with_empty_row_groups, {}, id="empty row groups"),
        pytest.param(edited(lambda text: b"\xef\xbb\xbf" + text), {}, id="UTF-8 BOM"),
        pytest.param(edited(lambda text: text.replace(b"\n", b"\r\n")), {}, id="CRLF"),
        pytest.param(edited(lambda text: text.replace(b"\n", b"\r\n", 9)), {}, id="mixed ends"),
        pytest.param(edited(lambda text: text.replace(b"\n", b"\r", 9)), {}, id="mixed with CR"),
        pytest.param(with_cell(a="nan"), {}, id="NaN in CSV"),
        pytest.param(with_cell(a=""), {}, id="nothing in CSV"),
        pytest.param(with_cell(a="-"), {"data.missing_values": ["-"]}, id="declared dash"),
        pytest.param(of_parquet(k=[np.nan, None] * (ROWS // 2 - 1) + [1.0, 2.0]), {}, id="NaN"),
        pytest.param(of_parquet(k=[Decimal(i) / 100 for i in NUMBERS]), {}, id="decimals"),
        pytest.param(
            of_parquet(k=[dt.date(2026, 1, 1) + dt.timedelta(i) for i in NUMBERS]), {}, id="dates"
        ),
        pytest.param(
            of_parquet(k=pa.array(NUMBERS, pa.timestamp("ms", "Europe/Berlin"))),
            {},
            id="zoned timestamps",
        ),
        pytest.param(of_parquet(k=pa.array(NUMBERS, pa.duration("s"))), {}, id="timedeltas"),
        pytest.param(
            of_parquet(k=pa.array([None, *NUMBERS[1:]], pa.int16())), {}, id="nullable integers"
        ),
        pytest.param(
            of_parquet(y=[Decimal(str(round(v, 3))) for v in columns()["y"]]),
            {},
            id="decimal target",
        ),
        pytest.param(
            of_parquet(k=[3.4e38 * (-1) ** i for i in NUMBERS]), {}, id="the largest features"
        ),
    ],
)
def test_accepted(make: Make, settings: dict[str, Any], tmp_path: Path, home: Home) -> None:
    found = seen(make(tmp_path / "data"), home, settings)
    assert found.notes == ()
    assert r2_of_all_rows(found, trained(found)) > 0.9


def test_a_float_late_in_an_integer_column_is_read_as_it_is(tmp_path: Path, home: Home) -> None:
    table = columns(k=[*NUMBERS[:-1], 0.25])
    found = seen(csv(tmp_path / "data", table), home)
    assert found.notes == ()
    assert {c.name: c.kind for c in found.dataset.columns}["k"] == "float"
    assert found.profile.columns[2].low is not None
    assert r2_of_all_rows(found, trained(found)) > 0.9


def test_odd_names_are_restored_in_every_output(tmp_path: Path, home: Home) -> None:
    names = ["a[1]", "b<2>", "n\nl", "größe ☃", "f0"]
    table = columns(**{name: columns()["a"][::-1] for name in names})
    found = seen(parquet(tmp_path / "data", table), home)
    scorer = trained(found)
    assert found.notes == ()
    assert scorer.encoder.names == ["a", "c", *names]
    assert [column.name for column in found.profile.columns] == ["a", "c", *names]
    scorer.save(tmp_path / "scorer")
    assert type(scorer).load(tmp_path / "scorer").encoder.names == ["a", "c", *names]
    assert r2_of_all_rows(found, scorer) > 0.9


def test_a_name_with_every_sign_can_be_the_target(tmp_path: Path, home: Home) -> None:
    table = columns()
    table["[y]<\n"] = table.pop("y")
    found = seen(parquet(tmp_path / "data", table), home, {"data.target": "[y]<\n"})
    assert r2_of_all_rows(found, trained(found)) > 0.9

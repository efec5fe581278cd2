"""Parquet in place: footers, schemas of several files, notes."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.engine.config import DataConfig
from tasks.engine.dataset import Dataset
from tasks.engine.frames import Device, on_host, read_frame
from tasks.engine.home import Home
from tasks.engine.parquet import inspect
from tasks.engine.sources import resolve
from tests.engine.tables import ingested, refusal


def write(folder: Path, row_group_size: int = 100, **tables: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=row_group_size)
    return folder


def inspected(folder: Path, **options: Any) -> Dataset:
    return inspect(resolve(DataConfig(source=str(folder))), **options)


def test_row_groups_and_columns(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "d", a={"x": list(range(250)), "s": ["t"] * 250}, b={"x": [1], "s": [None]}
    )
    dataset = inspected(folder)
    assert [(c.name, c.kind) for c in dataset.columns] == [("x", "integer"), ("s", "string")]
    assert [(g.path, g.index, g.rows, g.start) for g in dataset.row_groups()] == [
        ("a.parquet", 0, 100, 0),
        ("a.parquet", 1, 100, 100),
        ("a.parquet", 2, 50, 200),
        ("b.parquet", 0, 1, 0),
    ]
    assert dataset.notes == ()
    assert dataset.digest is None


@pytest.mark.parametrize(
    ("arrow", "kind"),
    [
        (pa.int8(), "integer"),
        (pa.uint64(), "integer"),
        (pa.float32(), "float"),
        (pa.bool_(), "boolean"),
        (pa.decimal128(12, 2), "decimal"),
        (pa.date32(), "date"),
        (pa.timestamp("ns", "Europe/Berlin"), "timestamp"),
        (pa.duration("ms"), "duration"),
        (pa.string(), "string"),
        (pa.dictionary(pa.int32(), pa.string()), "string"),
        (pa.large_string(), "string"),
        (pa.list_(pa.float64()), "other"),
        (pa.struct({"a": pa.int64()}), "other"),
        (pa.binary(), "other"),
        (pa.null(), "float"),
    ],
    ids=str,
)
def test_kinds(arrow: Any, kind: str, tmp_path: Path) -> None:
    write(tmp_path / "d", a={"x": pa.nulls(3, arrow)})
    assert [column.kind for column in inspected(tmp_path / "d").columns] == [kind]


def test_order_of_columns_and_widths_of_numbers_may_differ(tmp_path: Path) -> None:
    write(
        tmp_path / "d",
        a={"x": pa.array([1], pa.int32()), "y": pa.array([1.0], pa.float32())},
        b={"y": pa.array([1.0]), "x": pa.array([1])},
        c={"x": pa.nulls(1), "y": pa.nulls(1)},
    )
    dataset = inspected(tmp_path / "d")
    assert [(c.name, c.arrow) for c in dataset.columns] == [("x", "int64"), ("y", "double")]
    assert dataset.notes == ()


def test_integers_beside_floats_are_noted(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", a={"x": [1]}, b={"x": [1.5]}, c={"x": [2]})
    dataset = inspected(folder)
    assert [(c.kind, c.arrow) for c in dataset.columns] == [("float", "double")]
    assert dataset.notes == (
        f"The column 'x' holds integers in {folder}/a.parquet and floats in {folder}/b.parquet: it "
        "is read as floats.",
    )


def test_extra_column_is_left_out_with_a_note(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", a={"x": [1]}, b={"x": [1], "z": [2]}, c={"x": [1]})
    dataset = inspected(folder)
    assert dataset.names == ["x"]
    assert dataset.notes == (f"The column 'z' is only in {folder}/b.parquet and is left out.",)


def test_an_index_that_pandas_wrote_is_left_out(tmp_path: Path) -> None:
    """In some files it is there, in others not: pandas writes what is no plain range."""
    frame = pd.DataFrame({"x": [1, 2, 3, 4]})
    for name, each in (("a", frame), ("b", frame[frame.x != 2]), ("c", frame.iloc[[3, 0]])):
        each.to_parquet(tmp_path / f"{name}.parquet")
    dataset = inspected(tmp_path)
    assert dataset.names == ["x"]
    assert dataset.notes == (
        "The column '__index_level_0__' is an index without a name that pandas wrote, and is left "
        "out (to_parquet(…, index=False) does not write it).",
    )
    assert pd.concat([read_frame((g,), ["x"]) for g in dataset.row_groups()]).x.tolist() == [
        *(1, 2, 3, 4, 1, 3, 4, 4, 1)
    ]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_index_with_a_name_is_a_column(device: Device, tmp_path: Path) -> None:
    """In a folder named as a partition of it, and a file named as a pattern of another."""
    rows = pd.DataFrame({"id": [7, 9, 8], "x": [1.0, 2.0, 3.0]})
    folder = tmp_path / "id=1"
    folder.mkdir()
    rows.set_index("id").to_parquet(folder / "a[1].parquet")
    (rows + 1).set_index("id").to_parquet(folder / "a1.parquet")
    _, group = inspected(folder).row_groups()
    assert group.path == "a[1].parquet"
    found = on_host(read_frame((group,), ["id", "x"], device))
    pd.testing.assert_frame_equal(found, rows)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_large_integers_stay_whole_beside_missing_ones(dtype: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "d", a={"x": pa.array([2**62 + 1, None, 2**62], dtype)})
    (group,) = inspected(folder).row_groups()
    assert read_frame((group,), ["x"]).x.dropna().tolist() == [2**62 + 1, 2**62]


def test_integers_beyond_two_to_the_53_are_noted(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", a={"x": [2**53 + 1], "y": [2**53], "z": [-(2**60)]})
    assert inspected(folder).notes == tuple(
        f"{folder}/a.parquet: the column {name!r} holds integers beyond 2^53, which are rounded to "
        "the nearest 64-bit float."
        for name in "xz"
    )


def test_empty_files_and_row_groups_are_accepted(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", a={"x": pa.array([], pa.int64())}, c={"x": [1]})
    with pq.ParquetWriter(folder / "b.parquet", pa.schema({"x": pa.int64()})) as writer:
        writer.write_table(pa.table({"x": pa.array([], pa.int64())}))
        writer.write_table(pa.table({"x": [1, 2]}))
    dataset = inspected(folder)
    assert dataset.rows == 3
    assert [group.path for group in dataset.row_groups()] == ["b.parquet", "c.parquet"]


def test_remembered_digests_are_asked_by_uri_size_and_time(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", a={"x": [1]}, b={"x": [2]})
    asked = []

    def remembered(uri: str, size: int, modified: str) -> str | None:
        asked.append((uri, size, modified))
        return "d1" if uri.endswith("a.parquet") else None

    dataset = inspected(folder, remembered=remembered)
    status = (folder / "a.parquet").stat()
    assert asked[0] == (str(folder / "a.parquet"), status.st_size, str(status.st_mtime_ns))
    assert [file.digest for file in dataset.files] == ["d1", None]


def test_footers_are_read_of_new_and_changed_files_only(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    folder = write(tmp_path / "d", a={"x": [2**60]}, b={"x": [2]}, c={"x": [3]})
    first = ingested(folder, home)
    for name in "abc":  # whoever opens one of these fails
        spoil(folder / f"{name}.parquet")
    assert ingested(folder, home) == first
    write(folder, d={"x": [4, 5]})
    grown = ingested(folder, home)
    assert grown.files[:3] == first.files
    assert grown.files[3].row_groups == (2,)
    assert grown.notes == first.notes != ()
    os.utime(folder / "b.parquet")
    assert refusal(folder, home).startswith(f"{folder}/b.parquet is not a Parquet file")
    assert refusal(folder, home, verify=True).startswith(f"{folder}/a.parquet is not a Parquet")


def test_damaged_footers_of_an_earlier_run_are_read_again(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    folder = write(tmp_path / "d", a={"x": [1, 2, 3]})
    first = ingested(folder, home)
    (kept,) = (tmp_path / "home" / "footers").iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"[3]", b"[4]"))
    assert ingested(folder, home) == first


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_no_longer_be_read_is_told_of(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    folder = write(tmp_path / "d", a={"x": [1, 2, 3]})
    ingested(folder, home)
    (folder / "a.parquet").chmod(0)
    assert refusal(folder, home) == f"{folder}/a.parquet can't be read: permission denied."


def test_of_many_damaged_files_the_first_is_named(tmp_path: Path) -> None:
    tables: dict[str, Any] = {f"f{i:03d}": {"x": [i]} for i in range(100)}
    folder = write(tmp_path / "d", **tables)
    for name in ("f020", "f070", "f099"):
        spoil(folder / f"{name}.parquet")
    assert refusal(folder, Home(str(tmp_path / "home"))).startswith(f"{folder}/f020.parquet is not")


def spoil(file: Path) -> None:
    """Bytes of no Parquet file under the same size and time of change."""
    status = file.stat()
    file.write_bytes(b"\0" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

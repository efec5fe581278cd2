"""Sources that become Parquet: the same rows and types, once, and safely beside each other."""

import datetime as dt
import gzip
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.engine.config import DataConfig
from tasks.engine.errors import UserError
from tasks.engine.frames import read_frame
from tasks.engine.home import Home
from tasks.engine.infer import TextColumn
from tasks.engine.ingest import ingest
from tests.engine.tables import ingested, rows, types

UTC = dt.UTC


def converted(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "converted").glob("*/data.parquet"))


# -- CSV


def test_csv_types_are_found_over_the_whole_file(tmp_path: Path, home: Home) -> None:
    lines = [
        f"{i},{i}.5,{'true' if i % 2 else 'False'},2026-01-01,2026-01-01T00:00:{i % 60:02},"
        f'2026-01-01 00:00:00+02:00,"a ""{i % 3}""\n, b",,{i}'
        for i in range(90_000)
    ]
    lines = ["i,f,b,d,t,z,s,n,late", *lines[:-1], "7,,,,,,,,0.25"]
    file = tmp_path / "t.csv"
    file.write_text("\n".join(lines) + "\n")
    dataset = ingested(file, home)
    assert types(dataset) == {
        "i": "int64",
        "f": "double",
        "b": "bool",
        "d": "date32[day]",
        "t": "timestamp[us]",
        "z": "timestamp[us, tz=UTC]",
        "s": "string",
        "n": "null",
        "late": "double",
    }
    assert dataset.rows == 90_000
    assert [file.row_groups for file in dataset.files] == [(16_384,) * 5 + (8_080,)]
    found = rows(dataset)
    assert found[1] == {
        "i": 1,
        "f": 1.5,
        "b": True,
        "d": dt.date(2026, 1, 1),
        "t": dt.datetime(2026, 1, 1, 0, 0, 1),
        "z": dt.datetime(2025, 12, 31, 22, tzinfo=UTC),
        "s": 'a "1"\n, b',
        "n": None,
        "late": 1.0,
    }
    assert found[-1] == dict.fromkeys("fbdtzsn") | {"i": 7, "late": 0.25}
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        pytest.param(b"\xef\xbb\xbfa,b\n1,x\n", {}, [{"a": 1, "b": "x"}], id="byte order mark"),
        pytest.param(
            b"a,b\r\n1,x\n2,y\r\n", {}, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], id="CRLF"
        ),
        pytest.param(b"a,b\r1,x\r", {}, [{"a": 1, "b": "x"}], id="CR"),
        pytest.param(b"a,b\n\n1,x\n\n", {}, [{"a": 1, "b": "x"}], id="blank lines"),
        pytest.param(b"a,b\n 1 ,x\n", {}, [{"a": 1, "b": "x"}], id="spaces around a number"),
        pytest.param(b"a;b\n1;2,5\n", {"separator": ";"}, [{"a": 1, "b": "2,5"}], id="separator"),
        pytest.param(
            "a,b\n1,é\n".encode("cp1252"), {"encoding": "cp1252"}, [{"a": 1, "b": "é"}], id="cp1252"
        ),
        pytest.param(
            "a,b\n1,é\n".encode("utf-16"), {"encoding": "utf-16"}, [{"a": 1, "b": "é"}], id="utf-16"
        ),
        pytest.param(
            gzip.compress(b"a,b\n1") + gzip.compress(b",x\n"), {}, [{"a": 1, "b": "x"}], id="gzip"
        ),
        pytest.param(
            b"a,b\n1,?\n-,x\n,\n",
            {"missing_values": ["-", "?"]},
            [{"a": 1, "b": None}, {"a": None, "b": "x"}, {"a": None, "b": None}],
            id="missing values",
        ),
        pytest.param(
            b"a,b\n1,7\nA1,8\n2,9\n",
            {"categories": ["a"]},
            [{"a": "1", "b": 7}, {"a": "A1", "b": 8}, {"a": "2", "b": 9}],
            id="a category of mixed codes",
        ),
        pytest.param(
            b"a,b\n1,7\n?,8\n",
            {"exclude": ["a"]},
            [{"a": "1", "b": 7}, {"a": "?", "b": 8}],
            id="an excluded column",
        ),
        pytest.param(
            b"a,b\nx,7\n1,8\ny,9\n",
            {},
            [{"a": "x", "b": 7}, {"a": "1", "b": 8}, {"a": "y", "b": 9}],
            id="mostly text",
        ),
        pytest.param(b"a,b\n0x1,x\n", {}, [{"a": "0x1", "b": "x"}], id="hexadecimal is text"),
        pytest.param(
            b'a,b\n1,5" pipe\n', {}, [{"a": 1, "b": '5" pipe'}], id="a quote inside a field"
        ),
    ],
)
def test_csv(
    content: bytes, options: dict[str, Any], expected: Any, tmp_path: Path, home: Home
) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    dataset = ingested(file, home, **options)
    assert rows(dataset) == expected
    assert dataset.notes == ()


@pytest.mark.parametrize(("ending", "content"), [
    ("csv", b"code,flag,day,b\n01,True,2024-01-03,2\n02,False,2024-01-04,3\n"),
    ("json", b'{"code":"01","flag":"True","day":"2024-01-03","b":2}\n'
             b'{"code":"02","flag":"False","day":"2024-01-04","b":3}\n'),
])  # fmt: skip
def test_what_is_text_is_not_guessed_to_be_anything_else(
    ending: str, content: bytes, tmp_path: Path, home: Home
) -> None:
    file = tmp_path / f"t.{ending}"
    file.write_bytes(content)
    config = DataConfig(source=str(file))
    usual = ingest(config, home)
    told = ingest(config, home, texts={"flag", "code", "day", "elsewhere"})
    assert types(told) == {"code": "string", "flag": "string", "day": "string", "b": "int64"}
    assert rows(told)[0] == {"code": "01", "flag": "True", "day": "2024-01-03", "b": 2}
    assert usual.digest != told.digest
    assert ingest(config, home, texts={"elsewhere"}) == usual == ingest(config, home)
    assert len(converted(tmp_path)) == 2


def test_a_doubtful_column_of_a_table_to_be_scored(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,b\n" + "1,2\n" * 9 + "?,?\n")
    config = DataConfig(source=str(file), features=("b",))  # a column of no use may hold anything
    with pytest.raises(UserError) as refused:
        ingest(config, home)
    assert str(refused.value) == (
        f"{file}, line 11: '?' in the column 'b', whose other values are numbers. If it means a "
        'missing value, set data.missing_values=["?"]. It was a column of numbers or times in '
        "training."
    )
    assert types(ingest(config, home, texts={"b"}))["b"] == "string"


def test_csv_notes(tmp_path: Path, home: Home) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "1.csv").write_bytes(b"a,b\n1,9007199254740993\n")
    (folder / "2.csv").write_bytes(b"a,b\n1.5,2")
    dataset = ingested(folder, home)
    assert types(dataset) == {"a": "double", "b": "int64"}
    assert dataset.notes == (
        f"The column 'a' holds integers in {folder}/1.csv and floats in {folder}/2.csv: it is read "
        "as floats.",
        f"{folder}/2.csv: the last line has no line end. Was the file cut short?",
        f"{folder}/1.csv: the column 'b' holds integers beyond 2^53, which are rounded to the "
        "nearest 64-bit float.",
    )


@pytest.mark.parametrize("name", ["housing.csv", "diamonds.csv"])
def test_real_tables(name: str, shared_data: Path, home: Home) -> None:
    """Equal to pandas' reading, to the last bit."""
    dataset = ingested(shared_data / name, home)
    found = pq.read_table(dataset.files[0].uri).to_pandas()
    expected = pd.read_csv(shared_data / name)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.integers(2**70, 2**71).map(str),
    st.floats(allow_nan=False).map(repr),
    st.sampled_from(["true", "False", "2026-01-01", "2026-01-01T10:00", "2026-01-01 10:00Z"]),
    st.sampled_from(["x", "-", "N/A", "", "2026-02-30", " 7", "1e400", "nan"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=12), st.integers(1, 11))
def test_a_type_does_not_depend_on_where_blocks_are_cut(cells: list[str | None], cut: int) -> None:
    def seen(*parts: list[str | None]) -> TextColumn:
        column = TextColumn("c")
        for part in parts:
            column.see(pa.array(part, pa.string()))
        return column

    whole, parted = seen(cells), seen(cells[:cut], cells[cut:])
    assert whole.type == parted.type
    if pa.types.is_string(whole.type):
        assert whole.evidence() == parted.evidence()
    elif not pa.types.is_null(whole.type):
        trimmed = [cell and cell.strip() for cell in cells]
        pa.array(trimmed, pa.string()).cast(whole.type)


# -- once, and safely


def test_a_conversion_is_reused_while_the_file_is_the_same(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n1,2\n")
    first = ingested(file, home)
    written = converted(tmp_path)[0].stat().st_mtime_ns
    assert ingested(file, home) == first
    assert converted(tmp_path)[0].stat().st_mtime_ns == written
    assert len(converted(tmp_path)) == 1

    file.write_bytes(b"a,b\n1,3\n")
    changed = ingested(file, home)
    assert changed.digest != first.digest
    assert rows(changed) == [{"a": 1, "b": 3}]

    # the last bits of a mean depend on where batches are cut
    assert ingested(file, home, row_group_rows=7).digest != changed.digest
    assert len(converted(tmp_path)) == 3


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b"a,b\n1,-1\n2,3\n", {"missing_values": ("", "-1")}),
        (b"a,b;c\n1,2;3\n", {"separator": ";"}),
        (b"a,\xc3\xa9\n1,2\n", {"encoding": "cp1252"}),
    ],
    ids=["missing values", "separator", "encoding"],
)
def test_one_file_read_in_two_ways_is_two_datasets(
    content: bytes, options: dict[str, Any], tmp_path: Path, home: Home
) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    usual, other = ingested(file, home), ingested(file, home, **options)
    assert (usual.columns, rows(usual)) != (other.columns, rows(other))
    assert usual.digest != other.digest
    elsewhere = Home(str(tmp_path / "another"))
    assert ingested(file, elsewhere, **options).digest == other.digest


@pytest.mark.parametrize("damage", ["shorter", "footer", "gone", "record"])
def test_a_damaged_conversion_is_made_again(damage: str, tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n1,2\n")
    ingested(file, home)
    path = converted(tmp_path)[0]
    if damage == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "footer":
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
    elif damage == "gone":
        path.unlink()
    else:
        record = path.parent / "record.json"
        record.write_bytes(record.read_bytes().replace(b'"a"', b'"A"'))
    assert rows(ingested(file, home)) == [{"a": 1, "b": 2}]


def test_verify_reads_the_source_again(tmp_path: Path, home: Home) -> None:
    import os

    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n1,2\n")
    status = file.stat()
    first = ingested(file, home)
    written = converted(tmp_path)[0].stat().st_mtime_ns
    assert ingested(file, home, verify=True) == first
    assert converted(tmp_path)[0].stat().st_mtime_ns == written
    file.write_bytes(b"a,b\n1,3\n")  # of the same size, and the same time
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ingested(file, home).digest == first.digest
    assert rows(ingested(file, home, verify=True)) == [{"a": 1, "b": 3}]


def test_positions_are_those_of_the_originals(tmp_path: Path, home: Home) -> None:
    folder = tmp_path / "d" / "deep"
    folder.mkdir(parents=True)
    (tmp_path / "d" / "b.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    (folder / "a.csv").write_text("a,b\n1,2\n")
    groups = ingested(tmp_path / "d", home, row_group_rows=2).row_groups()
    assert [(g.path, g.index, g.rows, g.start) for g in groups] == [
        ("b.csv", 0, 2, 0),
        ("b.csv", 1, 1, 2),
        ("deep/a.csv", 0, 1, 0),
    ]


def test_a_refused_file_leaves_nothing_behind(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n" + b"1,2\n" * 100_000 + b"1\n")
    with pytest.raises(UserError):
        ingested(file, home)
    assert list((tmp_path / "home" / "converted").iterdir()) == []


def test_conversions_at_once_do_not_disturb_each_other(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"a,b\n" + b"1,x\n2,y\n" * 50_000)
    with ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda _: ingested(file, home), range(8)))
    assert len(set(datasets)) == 1
    assert pq.read_table(datasets[0].files[0].uri).num_rows == 100_000
    assert sorted(path.name for path in (tmp_path / "home" / "converted").glob("*/*")) == [
        "data.parquet",
        "record.json",
    ]


def test_source_and_home_on_other_file_systems() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/in/deep/a.csv", b"a,b\n1,2\n")
    memory.pipe_file("/in/b.csv.gz", gzip.compress(b"a,b\n3,4\n"))
    home = Home("memory://home")
    dataset = ingested("memory://in", home)
    assert [file.path for file in dataset.files] == ["b.csv.gz", "deep/a.csv"]
    assert dataset.files[0].uri.startswith("memory://home/converted/")
    read = [read_frame([group], dataset.names) for group in dataset.row_groups()]
    assert pd.concat(read)["a"].tolist() == [3, 1]
    assert ingested("memory://in", home) == dataset
    assert len(memory.glob("/home/converted/*/data.parquet")) == 2

    memory.pipe_file("/pond/p.parquet", memory.cat_file(memory.glob("/home/converted/*/*.pa*")[0]))
    dataset = ingested("memory://pond", home)
    assert len(read_frame(dataset.row_groups(), dataset.names)) == 1


@pytest.mark.slow
def test_on_a_cluster(tmp_path: Path, home: Home, dask_client: Any) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.csv").write_text(f"a,b\n{i},x\n{i}{'.5' if i == 7 else ''},y\n")
    here = ingested(folder, Home(str(tmp_path / "here")))
    there = ingested(folder, home, dask_client)
    assert there.digest == here.digest
    assert there.columns == here.columns
    assert there.notes == here.notes
    (folder / "05.csv").write_text("a,b\n1\n")
    (folder / "15.csv").write_text("")
    with pytest.raises(UserError) as refused:
        ingested(folder, home, dask_client)
    assert str(refused.value).startswith(f"{folder}/05.csv, line 2: 1 field where the header has 2")


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A file of 120 MB is converted in a process that may not grow by as much."""
    file = tmp_path / "t.csv"
    block = "".join(f"{i},{i / 7},{i * 3.25}\n" for i in range(100_000))
    with file.open("w") as table:
        table.write("a,b,c\n")
        for _ in range(45):
            table.write(block)
    assert file.stat().st_size > 120_000_000
    code = (
        "import resource; from tasks.engine.ingest import *; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; "
        f"before = peak(); d = ingest(DataConfig(source={str(file)!r}), Home({str(tmp_path)!r})); "
        "print(d.rows, peak() - before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, grown = map(int, out.stdout.split())
    assert count == 4_500_000
    assert grown < 110


def test_importing_is_light() -> None:
    code = (
        "import sys, tasks.engine.ingest, tasks.engine.roles; "
        "print([m for m in ('sqlalchemy', 'sklearn', 'dask', 'distributed') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"

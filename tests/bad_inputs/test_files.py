"""Files other than CSV that are not what they should be, each refused with the way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.engine.config import DataConfig
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tests.engine.tables import parquet, refusal

LONG = "123456789012345678901234567890"


def named_twice() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), sink)
    return bytes(sink.getvalue())


GOOD = parquet(a=[1, 2], b=[0.5, 1.5])


def huge_footer(content: bytes) -> bytes:
    return content[:-8] + (2**31).to_bytes(4, "little") + b"PAR1"


PARQUET_CASES = [
    pytest.param(b"", "{file} is empty (0 bytes). Write it again or leave it out.", id="empty"),
    pytest.param(
        GOOD[:-20],
        "{file} is a damaged Parquet file (it does not end in PAR1: it was cut short). Write it "
        "again.",
        id="cut short",
    ),
    pytest.param(
        b"\0" * len(GOOD),
        "{file} is not a Parquet file: it does not begin with PAR1. Write it again.",
        id="zeros",
    ),
    pytest.param(
        b"XXXX" + GOOD[4:],
        "{file} is not a Parquet file: it does not begin with PAR1. Write it again.",
        id="wrong head magic",
    ),
    pytest.param(
        b"a,b\n1,2\n3,4\n",
        "{file} is not a Parquet file: it does not begin with PAR1. It seems to be text: set "
        "data.format=csv, or rename it.",
        id="CSV named .parquet",
    ),
    pytest.param(
        huge_footer(GOOD),
        "{file} is a damaged Parquet file (its footer claims 2,147,483,648 of the file's {size} "
        "bytes). Write it again.",
        id="huge footer",
    ),
    pytest.param(
        GOOD[:4] + b"\xff" * 16 + GOOD[20:],
        "{file} is a damaged Parquet file (row group 0: Couldn't deserialize thrift: don't know "
        "what type: \x0f). Write it again.",
        id="damaged page",
    ),
    pytest.param(
        parquet(a=pa.array([], pa.int64())), "{file} has columns but no rows.", id="zero rows"
    ),
    pytest.param(
        named_twice(),
        "{file}: 2 columns are named 'a' (columns 1 and 2). Give each a name of its own.",
        id="duplicate names",
    ),
    pytest.param(
        parquet(**{"a": [1], "": [2]}),
        "{file}: column 2 of 2 has no name. Name every column (pandas writes its index so: "
        "to_csv(…, index=False) leaves it out).",
        id="empty name",
    ),
]


@pytest.mark.parametrize(("content", "message"), PARQUET_CASES)
def test_parquet(content: bytes, message: str, tmp_path: Path, home: Home) -> None:
    file = tmp_path / "table.parquet"
    file.write_bytes(content)
    expected = message.replace("{file}", str(file)).replace("{size}", f"{len(content):,}")
    assert refusal(file, home) == expected


def test_parquet_that_opens_to_too_much(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "table.parquet"
    pq.write_table(pa.table({"a": pa.array([0.0] * 300_000)}), file)
    assert refusal(file, home, max_gigabytes=0.001) == (
        f"{file} is {file.stat().st_size:,} bytes and opens to more than data.max_gigabytes=0.001. "
        "Raise it if the source is to be trusted."
    )
    assert ingest(DataConfig(source=str(file), max_gigabytes=0.003), home).rows == 300_000


def naive_and_zoned() -> dict[str, bytes]:
    return {
        "1.parquet": parquet(t=pa.array([0], pa.timestamp("us"))),
        "2.parquet": parquet(t=pa.array([0], pa.timestamp("us", "UTC"))),
    }


FOLDER_CASES: list[Any] = [
    pytest.param(
        dict,
        "data.source='{folder}' holds no data files (names that begin with _ or . and .tmp and "
        ".crc files don't count).",
        id="empty folder",
    ),
    pytest.param(
        lambda: {"_SUCCESS": b"", "1.parquet.tmp": GOOD, ".1.parquet.crc": b"x"},
        "data.source='{folder}' holds no data files (names that begin with _ or . and .tmp and "
        ".crc files don't count).",
        id="only marks",
    ),
    pytest.param(
        lambda: {"1.parquet": GOOD, "2.parquet": GOOD[:-1], "3.parquet": b""},
        "{folder}/2.parquet is a damaged Parquet file (it does not end in PAR1: it was cut short). "
        "Write it again.",
        id="bad files among good ones",
    ),
    pytest.param(
        lambda: {"1.parquet": parquet(a=[1.5]), "2.parquet": parquet(a=["x"])},
        "The column 'a' holds numbers in {folder}/1.parquet and text in {folder}/2.parquet. Write "
        "one of the files again, or leave the column out of both.",
        id="text and floats",
    ),
    pytest.param(
        naive_and_zoned,
        "The column 't' holds timestamps without a time zone in {folder}/1.parquet and timestamps "
        "with a time zone in {folder}/2.parquet. Write one of the files again, or leave the column "
        "out of both.",
        id="naive and zoned",
    ),
    pytest.param(
        lambda: {"1.parquet": GOOD, "2.parquet": parquet(a=[1]), "3.parquet": GOOD},
        "{folder}/2.parquet has no column 'b', which 2 of the 3 files have. Its columns are: a. "
        "Write the file again with the column, or leave the file out.",
        id="column missing in one file",
    ),
    pytest.param(
        lambda: {"1.csv": b"a,b\n1,2\n", "2.csv": b"a,b\n,1\nx,2\ny,3\n"},
        "The column 'a' holds numbers in {folder}/1.csv and text in {folder}/2.csv. Write one of "
        "the files again, or leave the column out of both. The first text is 'x' in "
        "{folder}/2.csv, line 3.",
        id="numbers and text in CSV files",
    ),
    pytest.param(
        lambda: {"1.csv": b"a\n1\n", "2.parquet": GOOD},
        "data.source='{folder}' holds files of several formats: {folder}/1.csv (csv) and "
        "{folder}/2.parquet (parquet). Name those that are meant, as in "
        'data.source="folder/*.csv".',
        id="two formats",
    ),
    pytest.param(
        lambda: {"1.parquet": GOOD, "_delta_log/0.json": b"{}"},
        "{folder} is a Delta Lake table, whose folder also holds rows that were deleted. Read it "
        "with a loader of your own (data.source=module:function).",
        id="Delta Lake",
    ),
]


@pytest.mark.parametrize(("files", "message"), FOLDER_CASES)
def test_folder(
    files: Callable[[], dict[str, bytes]], message: str, tmp_path: Path, home: Home
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    assert refusal(folder, home) == message.replace("{folder}", str(folder))


JSON_CASES = [
    pytest.param(b"", "{file} is empty.", id="empty"),
    pytest.param(
        b'[{"a": 1}]',
        "{file} is a JSON array. JSON lines are read: one object per line (in pandas: "
        'to_json(…, orient="records", lines=True)).',
        id="array",
    ),
    pytest.param(
        b'{"a": 1}\n{"a": \n',
        "{file}, line 2 is not JSON (Expecting value: line 1 column 7 (char 6)). Every line holds "
        "one object. Correct the line or write the file again.",
        id="cut line",
    ),
    pytest.param(
        b'{"a": 1}\n\n{"a": "x"}\n',
        "{file}, line 3: the column 'a' holds text (\"x\") where lines before it hold a number. "
        "Give the column one type.",
        id="text among numbers",
    ),
    pytest.param(
        b'{"a": 1}\n5\n',
        "{file}, line 2 holds a number where one object per line is expected. Write "
        '{"column": value, …}.',
        id="no object",
    ),
    pytest.param(
        f'{{"a": 1}}\n{{"a": {LONG}}}\n'.encode(),
        f"{{file}}, line 2: the integer {LONG} in the column 'a' does not fit 64 bits. Write it as "
        "a float, or as text.",
        id="30 digits",
    ),
]


@pytest.mark.parametrize(("content", "message"), JSON_CASES)
def test_json(content: bytes, message: str, tmp_path: Path, home: Home) -> None:
    file = tmp_path / "table.jsonl"
    file.write_bytes(content)
    assert refusal(file, home) == message.replace("{file}", str(file))


def arrow_file(stream: bool = False) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"a": list(range(1000))})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_arrow_cut_short(stream: bool, tmp_path: Path, home: Home) -> None:
    file = tmp_path / "table.arrow"
    content = arrow_file(stream)
    file.write_bytes(content)
    assert ingest(DataConfig(source=str(file)), home).rows == 1000
    for cut in (content[:-4], content[: len(content) // 2], content[:20], b""):
        file.write_bytes(cut)
        message = refusal(file, home)
        assert message.startswith(str(file))
        assert "cut short" in message or message == f"{file} is empty."


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.engine import convert

    file = tmp_path / "table.csv"
    file.write_bytes(b"a,b\n1,2\n")
    write = convert._write

    def written_meanwhile(*arguments: Any) -> Any:
        record = write(*arguments)
        file.write_bytes(b"a,b\n1,2\n3,4\n")
        return record

    monkeypatch.setattr(convert, "_write", written_meanwhile)
    assert refusal(file, home) == (
        f"{file} changed while it was read. Run again once nothing writes to it any more."
    )

"""Files that are not what they should be: each is refused with one sentence and the way out."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.engine.config import DataConfig
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.ingest import ingest

LONG = "123456789012345678901234567890"


def parquet(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def named_twice() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), sink)
    return bytes(sink.getvalue())


def refusal(source: object, home: Home, **settings: Any) -> str:
    with pytest.raises(UserError) as refused:
        ingest(DataConfig.model_validate({"source": str(source), **settings}), home)
    return str(refused.value)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(str(tmp_path / "home"))


GOOD = parquet(a=[1, 2], b=[0.5, 1.5])

CSV_CASES = [
    pytest.param(b"", {}, "{file} is empty.", id="empty"),
    pytest.param(b"a,b\n", {}, "{file} has columns but no rows.", id="header only"),
    pytest.param(
        b"a,b\n1,2\n3,4,5\n",
        {},
        "{file}, line 3: 3 fields where the header has 2; a separator within a field must be "
        "quoted. Correct the line or write the file again.",
        id="extra field",
    ),
    pytest.param(
        b"a,b\n1,2\n\n3\n4,5\n",
        {},
        "{file}, line 4: 1 field where the header has 2; the line may have been cut short. "
        "Correct the line or write the file again.",
        id="short row",
    ),
    pytest.param(
        b"a,b,c\n1,2,3\n4,5",
        {},
        "{file}, line 3: 2 fields where the header has 3; the line may have been cut short. "
        "Correct the line or write the file again.",
        id="cut mid-line",
    ),
    pytest.param(
        b"a,b\n1,2\n3,",
        {},
        "{file}, line 3: the last line ends in a separator without a line end, so the file was "
        "probably cut short. Write it again.",
        id="cut behind a separator",
    ),
    pytest.param(
        "a,b\n1,x\n2,é\n".encode("latin-1"),
        {},
        "{file}, line 3: byte 0xE9 is not utf-8 text. It is probably latin-1 or cp1252: set "
        "data.encoding=latin-1.",
        id="latin-1",
    ),
    pytest.param(
        "a,b\n1,2\n".encode("utf-16"),
        {},
        "{file} is not utf-8: it looks like UTF-16. Set data.encoding=utf-16.",
        id="utf-16",
    ),
    pytest.param(
        "a,b\n1,2\n".encode("utf-16-le"),
        {},
        "{file} is not utf-8: it looks like UTF-16. Set data.encoding=utf-16.",
        id="utf-16 without its mark",
    ),
    pytest.param(
        b"a,b\n1,2\n",
        {"encoding": "latin1x"},
        "data.encoding is 'latin1x', which is no text encoding. Common ones are utf-8, latin-1, "
        "cp1252 and utf-16.",
        id="unknown encoding",
    ),
    pytest.param(
        b"a,b\n1,x\n2,\0\n",
        {},
        "{file}, line 3: there is a NUL byte, so this is no text file, or it was damaged. Write "
        "the file again.",
        id="NUL bytes",
    ),
    pytest.param(
        gzip.compress(b"a,b\n" + b"1,2\n" * 1000)[:-9],
        {},
        "{file} is a gzip file that was cut short. Write it again.",
        id="gzip cut short",
    ),
    pytest.param(
        gzip.compress(b"a,b\n1,2\n")[:-8] + b"\1" * 8,
        {},
        "{file} is a damaged gzip file (Error -3 while decompressing data: incorrect data check). "
        "Write it again.",
        id="gzip damaged",
    ),
    pytest.param(
        gzip.compress(b"a,b\n" + b"1,2\n" * 500_000),
        {"max_gigabytes": 0.001},
        "{file} is {size} bytes and opens to more than data.max_gigabytes=0.001. Raise it if the "
        "source is to be trusted.",
        id="opens to too much",
    ),
    pytest.param(
        b"a,b\n" + b"1,2\n" * 3000 + b"x,2\n",
        {},
        "{file}, line 3002: 'x' in the column 'a', whose other values are mostly numbers. Correct "
        "it, or set data.missing_values if it means a missing value. Name the column in "
        "data.categories if it is meant as text, or in data.exclude.",
        id="text late in numbers",
    ),
    pytest.param(
        b"a,b\n1,2\n?,3\n",
        {},
        "{file}, line 3: '?' in the column 'a', whose other values are numbers. If it means a "
        'missing value, set data.missing_values=["?"]. Name the column in data.categories if it '
        "is meant as text, or in data.exclude.",
        id="question mark",
    ),
    pytest.param(
        b"a,b\n1,2\n" + b"N/A,3\n" * 9,
        {},
        "{file}, line 3: 'N/A' in the column 'a', whose other values are numbers. If it means a "
        'missing value, set data.missing_values=["N/A"]. Name the column in data.categories if '
        "it is meant as text, or in data.exclude.",
        id="mostly N/A",
    ),
    pytest.param(
        f"a,b\n1,2\n{LONG},3\n".encode(),
        {},
        f"{{file}}, line 3: the integer {LONG} in the column 'a' does not fit 64 bits. Name the "
        "column in data.categories if it is meant as text, or in data.exclude.",
        id="30 digits",
    ),
    pytest.param(
        b"a,t\n1,2026-01-01T00:00:00\n2,2026-01-01T00:00:00Z\n3,2026-01-02T00:00:00\n",
        {},
        "{file}, line 3: '2026-01-01T00:00:00Z' in the column 't', whose other values are mostly "
        "times. Correct it, or set data.missing_values if it means a missing value. Name the "
        "column in data.categories if it is meant as text, or in data.exclude.",
        id="naive and zoned",
    ),
    pytest.param(
        b'a,b\n1,"x\n2,y\n3,z\n',
        {},
        '{file}, line 2: a quote (") is opened and not closed as it should be. Close it, and write '
        'a quote inside a quoted field as "".',
        id="unterminated quote",
    ),
    pytest.param(
        b'a,b\n0,x\n1,"x\n2,"y"\n3,z\n',
        {},
        '{file}, line 3: a quote (") is opened and not closed as it should be. Close it, and write '
        'a quote inside a quoted field as "".',
        id="quote closed by the next",
    ),
    pytest.param(
        b"a;b\n1,5;2\n",
        {},
        "{file} has one column, 'a;b': its fields seem to be separated by ';'. Set "
        'data.separator=";".',
        id="semicolons",
    ),
    pytest.param(
        b"a\tb\n1\t2\n",
        {},
        "{file} has one column, 'a\\tb': its fields seem to be separated by '\\t'. Set "
        'data.separator="\\t".',
        id="tabs",
    ),
    pytest.param(
        b"a,b,a\n1,2,3\n",
        {},
        "{file}: 2 columns are named 'a' (columns 1 and 3). Give each a name of its own.",
        id="duplicate names",
    ),
    pytest.param(
        b",a,b\n0,1,2\n",
        {},
        "{file}: column 1 of 3 has no name. Name every column (pandas writes its index so: "
        "to_csv(…, index=False) leaves it out).",
        id="empty name",
    ),
    pytest.param(
        GOOD, {}, "{file} is a Parquet file. Set data.format=parquet.", id="Parquet named .csv"
    ),
    pytest.param(
        b"PK\x03\x04abc",
        {},
        "{file} is a zip archive (or an Excel workbook). Unpack it, or pack it with gzip: plain "
        "and gzip files are read.",
        id="zip named .csv",
    ),
]


@pytest.mark.parametrize(("content", "settings", "message"), CSV_CASES)
def test_csv(
    content: bytes, settings: dict[str, Any], message: str, tmp_path: Path, home: Home
) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(content)
    expected = message.replace("{file}", str(file)).replace("{size}", f"{len(content):,}")
    assert refusal(file, home, **settings) == expected


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

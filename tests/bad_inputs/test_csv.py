"""CSV files that are not what they should be, each refused with one sentence and the way out."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from tasks.engine import early
from tasks.engine.home import Home
from tests.bad_inputs.early import configured, refused
from tests.engine.tables import parquet, refusal

LONG = "123456789012345678901234567890"

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
        parquet(a=[1, 2]),
        {},
        "{file} is a Parquet file. Set data.format=parquet.",
        id="Parquet named .csv",
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


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("csv.gz", ","), ("tsv", "\t")])
def test_a_large_text_without_the_target_is_refused_by_its_first_line(
    ending: str, separator: str, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early, "SMALL_BYTES", 10)
    file = tmp_path / f"table.{ending}"
    # what stands below the first line would be refused too, if it were read
    content = separator.join(("rooms", "price")).encode() + b"\n1\n"
    file.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    assert refused(file, home, {"data.target": "prise"}) == (
        "The target column 'prise' (data.target) is not in the table. Did you mean 'price'? "
        "Its columns are: rooms, price."
    )
    early.check_early(configured(file, {"data.target": "price"}), home)

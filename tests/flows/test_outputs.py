"""Where predictions are written: what was there stays until the new is whole, and sources stay."""

import os
from contextlib import suppress
from ftplib import error_perm
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import LocalFileSystem

from flows.outputs import Output, parquet_writer
from tasks.engine.errors import RunError, UserError
from tasks.engine.parts import write_part
from tasks.engine.predictions import Part


class ArrowFiles(ArrowFSWrapper):
    """What Boostline knows of a file system that, like HDFS, moves files by itself."""

    protocol = "arrowfile"
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(LocalFileSystem(), **options)


class Refusing(ArrowFiles):
    """As FTP, SMB and HDFS: what is there has to go first."""

    protocol = "refusing"

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        if self.exists(path2):
            raise error_perm("550 exists")  # no OSError
        super().mv(path1, path2, **options)


class Silent(Refusing):
    """As WebHDFS: it does not even say so."""

    protocol = "silent"

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        with suppress(error_perm):
            super().mv(path1, path2, **options)


class Broken(ArrowFiles):
    """Ends the connection whenever it is to move a file."""

    protocol = "broken"

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        raise ConnectionError("it is gone")


for kind in (ArrowFiles, Refusing, Silent, Broken):
    fsspec.register_implementation(kind.protocol, kind)
HERE = ["arrowfile://{here}/new", "refusing://{here}/new", "silent://{here}/new"]
REMOTE = ["memory://o", *HERE]
NAMES = ["o.parquet", "o.csv", "o.csv.gz", "folder"]
OUTS = [*NAMES, *(f"{root}/{name}" for root in REMOTE for name in NAMES)]


def parts(folder: Path, *values: list[Any]) -> list[Part]:
    found = []
    for number, kept in enumerate(values):
        uri = str(folder / f"{number}.parquet")
        write_part(
            uri, pa.table({"kept": kept, "prediction": [float(x) for x in range(len(kept))]})
        )
        found.append(Part(uri=uri, rows=len(kept)))
    return found


def contents(out: str) -> dict[str, bytes]:
    filesystem, path = fsspec.core.url_to_fs(out)
    names = filesystem.find(path.rpartition("/")[0])
    return {name: filesystem.cat_file(name) for name in names if "/parts/" not in name}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "parts").mkdir()
    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("memory").store.clear()
    return tmp_path


@pytest.mark.parametrize("out", OUTS)
def test_what_was_there_stays_until_the_new_is_whole(out: str, place: Path) -> None:
    out = out.format(here=place)
    Output(out).write(parts(place / "parts", [1, 2], [3]))
    before = contents(out)
    damaged = parts(place / "parts", [4, 5], [6], [7])
    os.truncate(place / "parts" / "2.parquet", 20)
    with pytest.raises((pa.ArrowInvalid, OSError)):
        Output(out).write(damaged)
    assert contents(out) == before
    Output(out).write(parts(place / "parts", [8]))
    after = contents(out)
    assert len(after) == 1 and after != before


def test_what_could_not_be_moved_is_kept(place: Path) -> None:
    out = f"broken://{place}/new/o.csv"
    with pytest.raises(ConnectionError):  # nothing was there: the rows can be scored again
        Output(out).write(parts(place / "parts", [1]))
    assert contents(out) == {}
    (place / "new" / "o.csv").write_text("old")
    with pytest.raises(RunError, match=r"not be written \(.*it is gone.*\)\. All of it is in /"):
        Output(out).write(parts(place / "parts", [8]))
    ((name, content),) = contents(out).items()
    assert name.endswith(".part") and content == b'"kept","prediction"\n8,0\n'


@pytest.mark.parametrize("root", ["", *(f"{root}/" for root in REMOTE)])
def test_a_folder_loses_its_own_older_parts_alone(root: str, place: Path) -> None:
    root = root.format(here=place)
    out = f"{root}scored[1]"
    others = [f"{root}scored1/part-00000.parquet", f"{out}/part-00007-x.parquet", f"{out}/a.txt"]
    for name in others:
        with fsspec.open(name, "wb", auto_mkdir=True) as file:
            file.write(b"mine")
    Output(out).write(parts(place / "parts", [1], [2], [3]))
    Output(out).write(parts(place / "parts", [4], [5]))
    filesystem, path = fsspec.core.url_to_fs(out)
    names = sorted(name.rpartition("/")[2] for name in filesystem.ls(path, detail=False))
    assert names == ["a.txt", "part-00000.parquet", "part-00001.parquet", "part-00007-x.parquet"]
    assert [filesystem.cat_file(name) for name in others] == [b"mine"] * 3


@pytest.mark.parametrize(
    ("out", "source"),
    [
        ("t.csv", "{here}/t.csv"),
        ("link.csv", "{here}/t.csv"),
        ("./data", "{here}/data/part-00000.parquet"),
        ("{here}/data/", "{here}/data/a.parquet"),
        ("memory://o/t.parquet", "memory://o/t.parquet"),
        ("memory://o/data", "memory://o/data/t.parquet"),
    ],
)
def test_the_table_itself_is_not_written_over(out: str, source: str, place: Path) -> None:
    (place / "t.csv").write_text("a\n1\n")
    (place / "link.csv").symlink_to(place / "t.csv")
    (place / "data").mkdir()
    out, source = out.format(here=place), source.format(here=place)
    kind = "a folder" if "data" in out else "a file"
    with pytest.raises(UserError) as refused:
        Output(out).check_apart([f"{place}/another.csv", source])
    message = f"OUT is {out!r}, {kind} of the table to be scored. Name another."
    assert str(refused.value) == message
    Output(out).check_apart([f"{place}/another.csv", "memory://other/t.parquet"])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nosuch://b/o.csv", "OUT is 'nosuch://b/o.csv': Protocol not known: nosuch."),
        ("o.xlsx", "it must end in .parquet, .csv or .csv.gz, or be a folder's name."),
        ("file:///nowhere/o.csv", "The folder '/nowhere' of OUT does not exist. Make it first."),
        ("nowhere/o.csv", "The folder 'nowhere' of OUT does not exist. Make it first."),
        ("made.csv", "OUT is 'made.csv', which is a folder. Name a file."),
        ("notes", "OUT is 'notes', a file that is there and does not end in"),
    ],
)
def test_a_name_that_can_not_be_written(out: str, message: str, place: Path) -> None:
    (place / "made.csv").mkdir()
    (place / "notes").touch()
    with pytest.raises(UserError) as refused:
        Output(out)
    assert message in str(refused.value)


def test_csv_holds_no_lists(place: Path) -> None:
    schema = pa.schema({"day": pa.date32(), "tags": pa.list_(pa.string())})
    message = (
        r"^The column 'tags' \(--keep\) is of the type list<item: string>, which CSV can't hold\. "
        r"Write to a \.parquet file or a folder, or leave the column out\.$"
    )
    with pytest.raises(UserError, match=message):
        Output("o.csv").check_kept(schema)
    Output("o.csv").check_kept(schema.remove(1))
    Output("o.parquet").check_kept(schema)


def with_dictionary(path: Path) -> list[str]:
    """The columns of a Parquet file's first row group whose values are numbers of a dictionary."""
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    return [column.path_in_schema for column in columns if column.has_dictionary_page]


def test_kept_lists_and_structs_have_dictionaries(tmp_path: Path) -> None:
    rows = pa.table(
        {"tags": [["a", "b"]], "at": [{"town": "x"}], "a.b": ["q"], "prediction": [1.5]}
    )
    with parquet_writer(tmp_path / "out.parquet", rows.schema) as writer:
        writer.write_table(rows)
    assert with_dictionary(tmp_path / "out.parquet") == ["tags.list.element", "at.town", "a.b"]

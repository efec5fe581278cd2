"""What `data.source` may name, and the files that it stands for."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.engine.config import DataConfig
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.secrets import redact
from tasks.engine.sources import Source, resolve


def source_of(source: object, **settings: Any) -> Source:
    return resolve(DataConfig.model_validate({"source": str(source), **settings}))


def make(folder: Path, *names: str, content: bytes = b"a,b\n1,2\n") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        pytest.param("t.parquet", {}, "parquet", id="parquet"),
        pytest.param("t.PQ", {}, "parquet", id="upper case"),
        pytest.param("t.csv.gz", {}, "csv", id="csv.gz"),
        pytest.param("t.tsv", {}, "tsv", id="tsv"),
        pytest.param("t.feather", {}, "arrow", id="feather"),
        pytest.param("t.jsonl.gz", {}, "json", id="jsonl.gz"),
        pytest.param("t.txt", {"format": "csv"}, "csv", id="told"),
        pytest.param("t.csv", {"format": "tsv"}, "tsv", id="told otherwise"),
        pytest.param("t", {}, "parquet", id="magic"),
    ],
)
def test_format(name: str, settings: dict[str, Any], expected: str, tmp_path: Path) -> None:
    make(tmp_path, name, content=b"PAR1")
    assert source_of(tmp_path / name, **settings).format == expected


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        pytest.param("demo:regression", {}, "demo", id="demo"),
        pytest.param("loaders.sales:daily", {}, "loader", id="loader"),
        pytest.param("postgresql+psycopg://u:p@host/db", {"table": "t"}, "sql", id="database"),
        pytest.param("odd://host", {"query": "SELECT 1"}, "sql", id="told by a query"),
    ],
)
def test_what_is_no_file(source: str, settings: dict[str, Any], expected: str) -> None:
    assert source_of(source, **settings).format == expected


def test_folder_is_listed_by_relative_path(tmp_path: Path) -> None:
    wanted = ["b.csv", "deep/er/a.csv", "deep/z.csv"]
    make(tmp_path, *wanted, "_SUCCESS", "c.csv.tmp", ".c.csv.crc", "_temporary/d.csv", ".git/e.csv")
    source = source_of(tmp_path)
    assert [file.path for file in source.files] == wanted
    assert [file.uri for file in source.files] == [str(tmp_path / name) for name in wanted]
    assert source.size == 3 * 8
    assert source.files[0].modified == str((tmp_path / "b.csv").stat().st_mtime_ns)


def test_glob_counts_from_its_fixed_part(tmp_path: Path) -> None:
    make(tmp_path, "data/2025/a.csv", "data/2026/a.csv", "data/2026/b.txt", "data/2026/_c.csv")
    source = source_of(tmp_path / "data" / "20*" / "*.csv")
    assert [file.path for file in source.files] == ["2025/a.csv", "2026/a.csv"]
    assert [file.path for file in source_of(tmp_path / "data" / "**" / "a.csv").files] == [
        "2025/a.csv",
        "2026/a.csv",
    ]


def test_single_file_even_with_a_hidden_or_wild_name(tmp_path: Path) -> None:
    make(tmp_path, "_a[1].csv")
    assert [file.path for file in source_of(tmp_path / "_a[1].csv").files] == ["_a[1].csv"]


def test_relative_path_is_shown_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "data/a.csv", "b.csv")
    monkeypatch.chdir(tmp_path)
    assert source_of("data").files[0].shown == "data/a.csv"
    assert source_of("b.csv").files[0].shown == "b.csv"
    assert source_of("*.csv").files[0].shown == "b.csv"
    assert source_of(f"file://{tmp_path}/b.csv").files[0].uri == str(tmp_path / "b.csv")


def test_links_are_followed(tmp_path: Path) -> None:
    """A file or folder behind a link is read as if it were where the link is, and is no less."""
    make(tmp_path, "store/2025/a.csv", "store/2026/b.csv", "data/c.csv")
    (tmp_path / "data" / "years").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "one.csv").symlink_to(tmp_path / "store" / "2025" / "a.csv")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for source in ("data", "link", "link/**/*.csv"):
        found = source_of(tmp_path / source).files
        names = ["c.csv", "one.csv", "years/2025/a.csv", "years/2026/b.csv"]
        assert [file.path for file in found] == names
        assert found[2].uri == str(tmp_path / "store" / "2025" / "a.csv")


def _link_to_itself(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "back").symlink_to(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            _link_to_itself,
            "{folder}/deep/back is a link to a folder that it lies in.",
            id="a loop",
        ),
        pytest.param(
            lambda folder: (folder / "b.csv").symlink_to("gone.csv"),
            "{folder}/b.csv is a link that leads nowhere.",
            id="nowhere",
        ),
        pytest.param(
            lambda folder: os.mkfifo(folder / "b.csv"),
            "{folder}/b.csv is a pipe or a device, which can be read but once. Write its rows to a "
            "file.",
            id="a pipe",
        ),
    ],
)
def test_what_is_no_file_in_a_folder(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "d", "a.csv")
    spoil(folder)
    with pytest.raises(UserError) as refused:
        source_of(folder)
    assert str(refused.value) == message.replace("{folder}", str(folder))


def test_a_device_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        source_of("/dev/zero", format="csv")
    assert str(refused.value) == (
        "/dev/zero is a pipe or a device, which can be read but once. Write its rows to a file."
    )


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_partition_folders_are_noted(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "d" / "day=1"
    make(tmp_path, "d/day=1/a.csv", content=b"x,y\n1,2\n")
    if kind == "parquet":
        (folder / "a.csv").unlink()
        pq.write_table(pa.table({"x": [1], "y": [2]}), folder / "a.parquet")
    dataset = ingest(DataConfig(source=str(tmp_path / "d")), Home(str(tmp_path / "home")))
    assert dataset.notes == (
        "Folder names such as 'day=1' are not read as columns: write the column into the files if "
        "it is needed.",
    )


def test_fsspec_uris() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("/lake/day=1/a.csv", "/lake/day=2/a.csv.gz", "/lake/_SUCCESS"):
        memory.pipe_file(name, gzip.compress(b"a\n1\n"))
    folder = source_of("memory://lake")
    assert [file.path for file in folder.files] == ["day=1/a.csv", "day=2/a.csv.gz"]
    assert folder.files[0].uri == "memory:///lake/day=1/a.csv"
    assert folder.files[0].modified
    assert [f.path for f in source_of("memory://lake/*/a.csv").files] == ["day=1/a.csv"]
    assert source_of("memory://lake/day=1/a.csv").files[0].path == "a.csv"
    with pytest.raises(UserError) as refused:
        source_of("memory://lake/day=1/b.csv")
    assert str(refused.value) == (
        "There is nothing at data.source='memory://lake/day=1/b.csv'. Did you mean 'a.csv'? Beside "
        "it there are: a.csv."
    )


def test_what_is_not_there(tmp_path: Path) -> None:
    make(tmp_path, "data/housing.csv", "data/notes.txt")
    for source, message in {
        "data/housng.csv": "there is no 'housng.csv'. Did you mean 'housing.csv'? The folder "
        f"'{tmp_path}/data' holds: housing.csv, notes.txt.",
        "dta/housing.csv": "there is no folder 'dta'. Did you mean 'data'? The folder "
        f"'{tmp_path}' holds: data.",
    }.items():
        with pytest.raises(UserError) as refused:
            source_of(tmp_path / source)
        assert str(refused.value) == f"data.source='{tmp_path}/{source}': {message}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(
            "demo:classification",
            "There is no 'demo:classification'. The one demo is 'demo:regression'.",
            id="demo",
        ),
        pytest.param(
            "postgres://host/db",
            "data.source begins with postgres://, which is neither a file system nor a database "
            "that is known here. Did you mean 'postgresql'? Files: s3, gs, abfs, https, ftp, file. "
            "Databases: sqlite, postgresql, mysql, mariadb, oracle, mssql.",
            id="scheme",
        ),
        pytest.param(
            "ftp://me:secret@host/a.csv",
            "data.source='ftp://me:***@host/a.csv' holds a password, which would be kept with "
            "every file. Set it where fsspec looks for it: the variable FSSPEC_FTP_PASSWORD, or "
            "the storage's own (AWS_SECRET_ACCESS_KEY, say).",
            id="password",
        ),
    ],
)
def test_refused(source: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        source_of(source)
    assert str(refused.value) == message


def test_host_that_does_not_answer() -> None:
    with pytest.raises(UserError, match=r"data\.source='http://127\.0\.0\.1:9/a\.csv' can't be "):
        source_of("http://127.0.0.1:9/a.csv")


def test_unknown_ending(tmp_path: Path) -> None:
    make(tmp_path, "a.xlsx")
    with pytest.raises(UserError) as refused:
        source_of(tmp_path / "a.xlsx")
    assert str(refused.value) == (
        f"{tmp_path}/a.xlsx: its name does not say which format it has. Set data.format (parquet, "
        "csv, tsv, arrow or json), rename it (.parquet, .csv, .tsv, .arrow, .json are known, also "
        'with .gz behind), or leave it out by a wildcard, as in data.source="folder/*.csv".'
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p%40ss@host:5432/db", "postgresql://u:***@host:5432/db"),
        (
            "https://host/a.csv?X-Amz-Signature=abc&page=2",
            "https://host/a.csv?X-Amz-Signature=***&page=2",
        ),
        ("mysql://host/db?password=x", "mysql://host/db?password=***"),
        ("s3://bucket/key.parquet", "s3://bucket/key.parquet"),
        ("data/a.csv", "data/a.csv"),
        ("sqlite:///data.db", "sqlite:///data.db"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown

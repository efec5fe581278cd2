"""Places that can't be reached, read or written, and are named with the way out."""

import errno
import http.server
import os
import resource
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.engine.errors import RunError, UserError
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.members import GroupOptions, start_tracker
from tests.bad_inputs.early import columns, configured, csv, parquet, refused

REACH = "Correct the address, or look whether this host reaches it."


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path begins with."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param(
            "401/a.csv",
            "data.source='{url}': the server refuses (401 Unauthorized). Its credentials belong "
            "where fsspec looks for them: the storage's own variables, or a file in "
            "~/.config/fsspec.",
            id="no credentials",
        ),
        pytest.param(
            "403/a.csv",
            "data.source='{url}': the server refuses (403 Forbidden). Its credentials belong where "
            "fsspec looks for them: the storage's own variables, or a file in ~/.config/fsspec.",
            id="wrong credentials",
        ),
        pytest.param("404/a.csv", "There is nothing at data.source='{url}'.", id="nothing there"),
        pytest.param(
            "500/a.csv",
            "data.source='{url}' can't be reached (ClientResponseError: 500, message='Internal "
            f"Server Error', url='{{url}}'). {REACH}",
            id="server error",
        ),
    ],
)
def test_a_server_that_says_no(path: str, message: str, web: str, home: Home) -> None:
    url = f"{web}/{path}"
    assert refused(url, home) == message.replace("{url}", url)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        pytest.param(
            "http://127.0.0.1:9/a.csv",
            {},
            "data.source='http://127.0.0.1:9/a.csv' can't be reached (ClientConnectorError: Cannot "
            "connect to host 127.0.0.1:9 ssl:default [Connect call failed ('127.0.0.1', 9)]). "
            f"{REACH}",
            id="unreachable",
        ),
        pytest.param(
            "ftp://127.0.0.1:9/a.csv",
            {},
            "data.source='ftp://127.0.0.1:9/a.csv' can't be reached (ConnectionRefusedError: "
            f"[Errno 111] Connection refused). {REACH}",
            id="unreachable by FTP",
        ),
        pytest.param(
            "floppy://a/b.csv",
            {},
            "data.source begins with floppy://, which is neither a file system nor a database that "
            "is known here. Files: s3, gs, abfs, https, ftp, file. Databases: sqlite, postgresql, "
            "mysql, mariadb, oracle, mssql.",
            id="unknown scheme",
        ),
        pytest.param(
            "mysql+pymysql://u:secret@127.0.0.1:9/db",
            {"data.table": "t"},
            "mysql+pymysql://u:***@127.0.0.1:9/db needs the Python package 'pymysql': pip install "
            "pymysql.",
            id="missing driver",
        ),
        pytest.param(
            "sqlite:////proc",
            {"data.table": "t"},
            "'/proc' is a folder, not a database file.",
            id="database is a folder",
        ),
        pytest.param(
            "/proc/no/a.csv",
            {},
            "data.source='/proc/no/a.csv': there is no folder 'no'.",
            id="no folder",
        ),
        pytest.param(
            f"/tmp/{'a' * 300}.csv",
            {},
            f"data.source='/tmp/{'a' * 300}.csv' can't be read: file name too long.",
            id="name too long",
        ),
    ],
)
def test_refused(source: str, settings: dict[str, Any], message: str, home: Home) -> None:
    said = (
        refused(source, home, settings)
        if "data.table" not in settings
        else asked(source, home, settings)
    )
    assert said.startswith(message) if source.startswith("/proc") else said == message


def asked(source: str, home: Home, settings: dict[str, Any]) -> str:
    """Databases are left to the flow by the early check."""
    with pytest.raises(UserError) as error:
        ingest(configured(source, settings).data, home)
    return str(error.value)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        pytest.param(
            "SELECT * FORM t",
            '{url}: data.query fails: near "FORM": syntax error.',
            id="syntax",
        ),
        pytest.param(
            "SELECT z FROM t", "{url}: data.query fails: no such column: z.", id="unknown column"
        ),
        pytest.param(
            "SELECT a FROM t; DROP TABLE t",
            "{url}: data.query fails: You can only execute one statement at a time.",
            id="two statements",
        ),
    ],
)
def test_sql(query: str, message: str, tmp_path: Path, home: Home) -> None:
    url = f"sqlite:///{tmp_path}/t.db"
    with sqlite3.connect(tmp_path / "t.db") as connection:
        connection.execute("CREATE TABLE t (a, y)")
    connection.close()
    assert asked(url, home, {"data.query": query}) == message.replace("{url}", url)


def test_a_file_that_is_no_database(tmp_path: Path, home: Home) -> None:
    (tmp_path / "t.db").write_bytes(b"this is no database" * 100)
    url = f"sqlite:///{tmp_path}/t.db"
    said = asked(url, home, {"data.table": "t"})
    assert said == f"{url}: the database says: file is not a database."


def test_a_link_that_leads_nowhere(tmp_path: Path, home: Home) -> None:
    link = tmp_path / "t.csv"
    link.symlink_to(tmp_path / "gone.csv")
    assert refused(link, home) == f"data.source='{link}' is a link that leads nowhere."


def test_no_permission_to_read(home: Home) -> None:
    """Of process 1's memory even root is refused; elsewhere root is refused nothing."""
    said = refused("/proc/1/mem", home, {"data.format": "csv"})
    assert said == "/proc/1/mem can't be read: permission denied."


def test_a_disk_that_fails(home: Home) -> None:
    with pytest.raises(RunError) as error:
        ingest(configured("/proc/self/mem", {"data.format": "csv"}).data, home)
    assert str(error.value) == "/proc/self/mem can't be read to its end: Input/output error."


@pytest.mark.parametrize("make", [csv, parquet])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{file}", "BOOSTLINE_HOME ({home}) can't be written: file exists. "),
        ("{file}/home", "BOOSTLINE_HOME ({home}) can't be written: not a directory. "),
        ("/proc/home", "BOOSTLINE_HOME ({home}) can't be written: no such file or directory. "),
    ],
    ids=["a file", "below a file", "not writable"],
)
def test_no_permission_to_write(place: str, message: str, make: Any, tmp_path: Path) -> None:
    file = make(tmp_path / "data", columns())
    home = Home(place.replace("{file}", str(file)))
    expected = message.replace("{home}", home.root) + "Set it to a folder of yours."
    assert refused(file, home) == expected


def test_a_loader_is_not_asked_where_its_rows_can_not_be_kept(tmp_path: Path) -> None:
    home = Home("/proc/home")
    assert refused("nowhere:load", home) == (
        "BOOSTLINE_HOME (/proc/home) can't be written: no such file or directory. Set it to a "
        "folder of yours."
    )


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("floppy://x", "BOOSTLINE_HOME='floppy://x': Protocol not known: floppy."),
        ("s3://bucket", "BOOSTLINE_HOME='s3://bucket': Install s3fs to access S3."),
    ],
    ids=["unknown", "not installed"],
)
def test_a_home_on_an_unknown_file_system(root: str, message: str, tmp_path: Path) -> None:
    assert refused(csv(tmp_path / "data", columns()), Home(root)) == message


@pytest.fixture
def files_of_10_kb() -> Iterator[None]:
    """No file may grow beyond: to a writer the same as a full disk, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("make", "place"),
    [(csv, "converted"), (parquet, "profiles/files-#/#.parquet")],
    ids=["conversion", "profile"],
)
def test_no_space(
    make: Any, place: str, tmp_path: Path, home: Home, request: pytest.FixtureRequest
) -> None:
    table = {name: [i / 7 for i in range(3_000)] for name in "aby"}
    file = make(tmp_path / "data", table)
    request.getfixturevalue("files_of_10_kb")
    assert refused(file, home) == (
        f"There is no space left to write {home.root}/{place} ({os.strerror(errno.EFBIG)}). Free "
        "some, or set BOOSTLINE_HOME to a folder on a larger disk."
    )
    left = [path for path in Path(home.root).rglob("*") if path.is_file()]
    # what the footers say was kept whole, before the pass began
    assert [path for path in left if path.parent.name != "footers"] == []


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as error:
            start_tracker(None, 2, GroupOptions(tracker_host="127.0.0.1", tracker_port=port))
    assert str(error.value) == (
        f"XGBoost's tracker can't listen on 127.0.0.1, port {port} (cluster.tracker_host, "
        "cluster.tracker_port): Address already in use. Name an address of this host that workers "
        "reach, and a free port or 0."
    )

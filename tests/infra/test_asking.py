"""Loopback is asked directly, whatever proxy the environment names."""

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flows.reach import read, status
from flows.standing import use_services
from infra.asking import ask, is_loopback, without_proxy
from infra.prefect_server import EMBEDDED, EmbeddedPrefect, PrefectServerError
from infra.prefect_worker import online
from infra.start_limit import StartSettingError
from tasks.engine.errors import UserError
from tasks.engine.home import Home


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(b'"here"')

    def do_POST(self) -> None:
        self._answer(b'[{"name": "w", "status": "ONLINE"}]')

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def test_services_here_are_found_beside_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with server() as url:
        assert status(url) == 200
        assert read(url) == "here"
        assert online(f"{url}/api", "boostline") == ["w"]
    with pytest.raises(OSError, match="refused"):
        ask("http://192.0.2.1/", timeout=5)  # goes to the proxy


def test_a_user_in_a_url_is_not_taken_for_the_host() -> None:
    with server() as url:
        named = url.replace("http://", "http://me:s3cret@")
        assert status(named) == 200
        assert read(named) == "here"
        assert online(f"{named}/api", "boostline") == ["w"]
        EmbeddedPrefect(Path(), f"{named}/api", None).wait()


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_who_does_not_speak_http_does_not_answer(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_say, args=(listening, said), daemon=True).start()
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        assert (status(f"http://{place}"), read(f"http://{place}")) == (None, None)
        assert online(f"http://{place}/api", "boostline") == []
        with pytest.raises(PrefectServerError) as told:
            EmbeddedPrefect(Path(), f"http://me:s3cret@{place}/api", None).wait()
    assert str(told.value).startswith(f"No Prefect server answers at http://{place}/api (PREF")


def _say(listening: socket.socket, said: bytes) -> None:
    with suppress(OSError):
        while True:
            with listening.accept()[0] as caller:
                caller.sendall(said)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:4200api", "http://127.0.0.1:4200api"),
        ("http://[::1/api", "http://[::1/api"),
        ("http://me:pa/ss@127.0.0.1/api", "http://127.0.0.1/api"),
        ("http://me:12/ss@127.0.0.1/api", "http://127.0.0.1/api"),
        ("http://tok/en@127.0.0.1/api", "http://127.0.0.1/api"),
    ],
)
def test_what_is_no_url_does_not_answer(
    url: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(url) is None
    message = f"PREFECT_API_URL={shown!r} is not a URL. Write it as in "
    with pytest.raises(StartSettingError, match=re.escape(message)):
        EmbeddedPrefect(Path(), url, None).wait()
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        with monkeypatch.context() as environment:
            environment.setenv(name, url)
            with pytest.raises(UserError, match=re.escape(f"{name}={shown!r} is not a URL. ")):
                use_services(Home(str(tmp_path)))


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://127.0.0.1:4200/api", True),
        ("http://127.8.9.1", True),
        ("http://[::1]:4200/api", True),
        ("http://localhost:4200/api", True),
        ("http://prefect:4200/api", False),
        ("http://10.0.0.3", False),
        ("nonsense", False),
    ],
)
def test_loopback(url: str, own: bool) -> None:
    assert is_loopback(url) is own


def test_clients_leave_the_proxy_out_for_loopback(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "example.com")
    monkeypatch.delenv("NO_PROXY", raising=False)
    past = "example.com,127.0.0.1,localhost"
    assert without_proxy({"https_proxy": "x", "no_proxy": "example.com"})["NO_PROXY"] == past
    assert without_proxy({"PATH": "/bin"}) == {}
    near = EmbeddedPrefect(home, "http://127.0.0.1:4200/api", None).environment()
    assert near["no_proxy"] == past and EMBEDDED not in near
    far = EmbeddedPrefect(home, "http://prefect:4200/api", None).environment()
    assert "no_proxy" not in far

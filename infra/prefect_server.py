"""The Prefect server that a command starts for itself when none is configured.

It is a process of its own on a free port of the loopback interface. The caller starts it as early
as it can, goes on with other work, and waits for it when the flow is about to run; Prefect itself
is never imported here.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import socket
import ssl
import sys
import time
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from infra.asking import LOOPBACK, ask, is_loopback, without_proxy, without_user
from infra.fresh_databases import make_empty
from infra.prefect_files import write_client_files
from infra.service_process import ServiceError, ServiceProcess
from infra.start_limit import VARIABLE, StartSettingError, start_limit_s

# Runs that a schedule has in the database ahead of time. After an outage the last of those that
# were missed runs: with Prefect's three, a week's outage would end with the third night's data.
PLANNED_RUNS = "30"
# A server that the user named is not started by us: it answers soon or the address is wrong.
CONFIGURED_SERVER_LIMIT_S = 20.0

# Set, to its folder, in a process whose Prefect server ends with it. (PREFECT_HOME is no sign of
# that: users set it, too.)
EMBEDDED = "BOOSTLINE_EMBEDDED_PREFECT"

# What only a standing server needs. Task runs reach the database through the recorder, which stays.
_IDLE_SERVICES = (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "PAUSE_EXPIRATIONS",
    "CANCELLATION_CLEANUP",
    "REPOSSESSOR",
    "TRIGGERS",
)


class PrefectServerError(RuntimeError):
    """The Prefect server did not come up, or the configured one does not answer."""


class EmbeddedPrefect:
    """A Prefect server: one of our own process, or the one that `PREFECT_API_URL` names.

    Use it as a context manager, or call `stop`. Leaving it ends the process; a caller that is
    killed takes the process along within a second.
    """

    def __init__(
        self,
        home: Path,
        api_url: str,
        process: ServiceProcess | None,
        limit_s: float = 0.0,
    ) -> None:
        self.api_url = api_url
        self.folder = home / "prefect"
        self.results = home / "results"
        self.log_file = self.folder / "server.log"
        self.process = process
        self._limit_s = limit_s

    @property
    def embedded(self) -> bool:
        """Whether the server is ours (then its pages are gone when the command ends)."""
        return self.process is not None

    @property
    def pid(self) -> int | None:
        """Process id of our own server."""
        return self.process.pid if self.process is not None else None

    def wait(self) -> str:
        """Wait until the server answers and return the address of its API.

        Raises:
            PrefectServerError: the process ended, with the last lines of its log; or nothing
                answered within the limit.
            StartSettingError: `PREFECT_API_URL` is no URL.
        """
        if self.process is None:
            _wait_for_configured(self.api_url, self._limit_s)
            return self.api_url
        try:
            self.process.wait()
        except ServiceError as error:
            raise PrefectServerError(str(error)) from error
        return self.api_url

    def lost(self) -> str:
        """What to say where the server does not answer any more."""
        kept = "What was done is kept: the same command goes on from there."
        if self.process is None or (code := self.process.code) is None:
            return (
                f"The Prefect server at {without_user(self.api_url)} (PREFECT_API_URL) does not "
                f"answer any more, however often it is asked (PREFECT_CLIENT_MAX_RETRIES). {kept}"
            )
        return (
            f"The embedded Prefect server ended with code {code} during the run. {kept} "
            f"{self.process.last_lines()}"
        )

    def environment(self, *, verbose: bool = False) -> dict[str, str]:
        """Return the variables that a process must set before it imports Prefect.

        The logs of flow and task runs go to the API and nothing goes to the terminal, unless
        `verbose`. Results are JSON under `home/results`.
        """
        variables = {
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(self.results),
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }
        if not verbose:
            variables["PREFECT_LOGGING_CONFIG_PATH"] = str(self.folder / "quiet-logging.yml")
        if self.embedded:
            variables["PREFECT_HOME"] = variables[EMBEDDED] = str(self.folder)
            # An empty file of profiles: the user's own may name another server.
            variables["PREFECT_PROFILES_PATH"] = str(self.folder / "profiles.toml")
        if is_loopback(self.api_url):
            variables |= without_proxy(os.environ)
        return variables

    @contextmanager
    def flow_settings(self) -> Iterator[None]:
        """Hold Prefect's settings that no variable can express while a flow runs. Imports Prefect.

        On our own server flows send no heartbeats: nothing there listens to them, and a flow that
        ends waits up to a second for their thread.
        """
        if not self.embedded:
            yield
            return
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield

    def stop(self) -> None:
        """End our own server: SIGTERM, and SIGKILL after 8 s. Calling it again does nothing."""
        if self.process is not None:
            self.process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def start_embedded_prefect(home: Path, *, ui: bool = True) -> EmbeddedPrefect:
    """Start a Prefect server for `home` and return at once; `wait` tells when it is ready.

    Where `PREFECT_API_URL` is set nothing is started and that server is used. The database is
    `home/prefect/prefect.db`; several servers may start on it at once, one migrates it. `ui`
    serves Prefect's pages too (17 MB of files under `home/prefect/ui`, no time).

    Raises:
        PrefectServerError: Prefect is not installed.
    """
    home = home.absolute()
    folder = _prepare(home)
    if configured := os.environ.get("PREFECT_API_URL"):
        return EmbeddedPrefect(home, configured, None, start_limit_s(CONFIGURED_SERVER_LIMIT_S))
    way_out = (
        f"({VARIABLE}). Start one with `prefect server start` and name it in "
        "PREFECT_API_URL, or try again."
    )
    database = folder / "prefect.db"
    if not database.exists():
        make_empty("prefect", database)
    environment = _server_environment() | _for_one_command() | _at(database)
    if not ui:
        environment |= {"PREFECT_UI_ENABLED": "false", "PREFECT__SERVER_EPHEMERAL": "1"}
    name, limit_s = "The embedded Prefect server", start_limit_s()
    return _start(home, 0, environment, name, limit_s, way_out)


def start_standing_prefect(
    home: Path, *, port: int, database: Mapping[str, str] | None, startup_timeout_s: float
) -> EmbeddedPrefect:
    """Start a Prefect server with all its services for `home`, on `port` of loopback; 0 for any.

    Its database is that of the embedded server, unless the variables `database` name another.

    Raises:
        PrefectServerError: Prefect is not installed.
        OSError: the port is taken.
    """
    home = home.absolute()
    folder = _prepare(home)
    environment = _server_environment() | {
        **(database or _at(folder / "prefect.db")),
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": PLANNED_RUNS,
    }
    return _start(home, port, environment, "Prefect's server", startup_timeout_s, "(--timeout).")


def _at(database: Path) -> dict[str, str]:
    return {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}"}


def _prepare(home: Path) -> Path:
    folder = home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    write_client_files(folder)
    return folder


def _start(
    home: Path,
    port: int,
    environment: Mapping[str, str],
    name: str,
    startup_timeout_s: float,
    way_out: str,
) -> EmbeddedPrefect:
    if importlib.util.find_spec("prefect") is None:
        raise PrefectServerError(f"Prefect is not installed in {sys.prefix}.")
    folder = home / "prefect"
    # We bind the port and the server listens on it: no other process can take it in between.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        if port:
            # A server that just ended leaves connections behind; one that listens is still in use.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        port = listener.getsockname()[1]
        process = ServiceProcess(
            name,
            [
                sys.executable,
                "-P",
                str(Path(__file__).with_name("prefect_child.py")),
                str(listener.fileno()),
                str(os.getpid()),
                str(folder / "start.lock"),
            ],
            environment={**environment, **_pages(folder, port)},
            folder=folder,
            log_file=folder / "server.log",
            is_ready=lambda: _is_healthy(port),
            startup_timeout_s=startup_timeout_s,
            way_out=way_out,
            pass_fds=(listener.fileno(),),
        )
    return EmbeddedPrefect(home, f"http://{LOOPBACK}:{port}/api", process)


def _server_environment() -> dict[str, str]:
    """Return the server's environment: ours alone decides, not the caller's PREFECT_ variables."""
    kept = [name for name in list(os.environ) if not name.upper().startswith("PREFECT_")]
    # other threads take variables of their own away meanwhile
    variables = {name: value for name in kept if (value := os.environ.get(name)) is not None}
    return variables | {
        # Several commands may write to one file at once: wait rather than fail.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT__SERVER_FINAL": "1",
    }


def _for_one_command() -> dict[str, str]:
    """Return what spares a server that ends with a command some work."""
    variables = {
        # Saves 0.5 s on an empty home. Not remembered, so that a standing server on the same
        # home registers them.
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
    }
    return variables | {
        f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _IDLE_SERVICES
    }


def _pages(folder: Path, port: int) -> dict[str, str]:
    """Return where the server keeps what is its own, and which pages may speak to it."""
    own = [f"http://{host}:{port}" for host in (LOOPBACK, "localhost")]
    return {
        "PREFECT_HOME": str(folder),
        "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
        "PREFECT_UI_API_URL": f"{own[0]}/api",
        "PREFECT_UI_STATIC_DIRECTORY": str(folder / "ui"),
        # Any page in the user's browser otherwise: flow runs are processes of this user's.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own),
    }


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _wait_for_configured(api_url: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            ask(f"{api_url.rstrip('/')}/health", timeout=5).close()
            return
        except (urllib.error.HTTPError, ssl.SSLError):
            return  # somebody answers; credentials and certificates are Prefect's to judge
        except (ValueError, http.client.InvalidURL) as error:
            raise StartSettingError(
                f"PREFECT_API_URL={without_user(api_url)!r} is not a URL. Write it as in "
                "http://127.0.0.1:4200/api, or unset it to use the embedded server."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLError):
                return
            if time.monotonic() > deadline:
                raise PrefectServerError(
                    f"No Prefect server answers at {without_user(api_url)} (PREFECT_API_URL) after "
                    f"{limit_s:g} s ({VARIABLE}): {getattr(error, 'reason', error)}. Start it, "
                    "correct PREFECT_API_URL, or unset it to use the embedded server."
                ) from error
        time.sleep(0.5)

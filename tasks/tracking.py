"""The recorder of an MLflow run: to disk first, sent after, from one thread in the background.

What is recorded is appended to a spool before the call returns, so training never waits for a
tracking server and nothing is lost with the server or with this process. Sending is repeated
until the server confirms; every kind of event may be sent twice without harm.
"""

import fcntl
import hashlib
import json
import logging
import os
import posixpath
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException

from tasks.engine.errors import RunError

if TYPE_CHECKING:  # a run without plots needs no matplotlib
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]
Event = dict[str, Any]

# MLflow's limits; tests hold that they are still what the installed version says
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
DIGEST_LENGTH = 36
SCHEMA_LENGTH = 1_048_575
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}
_CHUNK = {"metrics": 500, "params": 50, "tags": 50}

# what sending again can't change: the store has read the request and refuses it
_REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE"}
_MLFLOW_SETTINGS = {
    # an outage is for the spool to meet: by itself MLflow repeats a request for four minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # and it writes to the terminal from whatever thread it is in
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_NO_SUCH_RUN = "RESOURCE_DOES_NOT_EXIST"
_PAUSES = (0.25, 0.5, 1.0, 2.0, 5.0)
_LINGER = 0.1  # seconds that events are gathered before a batch is sent

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """How a recording stands.

    Args:
        pending: events in the spool that MLflow hasn't confirmed.
        refused: events that MLflow refused; they are in `refused.jsonl` of the spool.
        cause: the last error of sending, None where there was none.
    """

    pending: int
    refused: int
    cause: str | None

    @property
    def complete(self) -> bool:
        return self.pending == 0 and self.refused == 0


def open_run(
    tracking_uri: str,
    experiment: str,
    run_name: str,
    tags: Mapping[str, str],
    spool_dir: Path,
    existing_run_id: str | None = None,
    *,
    artifact_location: str | None = None,
    timeout: float = 60.0,
) -> "Recorder":
    """Start or continue an MLflow run whose spool is `spool_dir`.

    A spool that is there continues its own run, and what it holds unconfirmed is sent first.
    MLflow has no settings but the process's environment; those of `_MLFLOW_SETTINGS` are set
    there unless they are set already.

    Args:
        experiment: name; created where it doesn't exist.
        tags: of a new run.
        existing_run_id: the run to continue when there is no spool.
        artifact_location: of an experiment that is created here.
        timeout: seconds in which the server must answer for the run to be opened.

    Raises:
        RunError: the server didn't answer in time, or another process records into this spool.
        MlflowException: the server refuses, for example because the run doesn't exist.
    """
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    spool = _Spool(spool_dir)
    try:
        run_id = spool.run_id or existing_run_id
        if existing_run_id not in (None, run_id):
            raise RunError(
                f"{spool_dir} holds the recording of MLflow run {run_id}, not of {existing_run_id}."
            )
        run_id = _answered(
            lambda: _run_id(client, run_id, experiment, run_name, tags, artifact_location),
            without_secrets(tracking_uri),
            timeout,
        )
        spool.run_id = run_id
    except BaseException:
        spool.close()
        raise
    return Recorder(client, run_id, spool)


class Recorder:
    """Records one MLflow run; made by `open_run`, ended by `close` or as a context.

    Left by an exception the run is FAILED, by a KeyboardInterrupt KILLED.
    """

    def __init__(self, client: MlflowClient, run_id: str, spool: "_Spool") -> None:
        self.client = client
        self.run_id = run_id
        self._spool = spool
        self._pending: deque[Event] = deque(spool.unconfirmed())
        self._changed = threading.Condition()
        self._closing = False
        self._given_up = threading.Event()
        self._refused = 0
        self._cause: str | None = None
        self._sender = threading.Thread(target=self._send_all, name="mlflow-sender", daemon=True)
        self._sender.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters; nested mappings become dotted names. A value longer than MLflow takes is
        cut there, and kept whole as the artifact `params/<name>.txt`."""
        items = []
        for name, value in flattened(values):
            key = entity_name(name)
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            if len(text) > PARAM_LENGTH:
                self._file({"folder": "params"}, f"{key.replace('/', '_')}.txt", text.encode())
                text = text[: PARAM_LENGTH - 1] + "…"
            items.append((key, text))
        self._record_items("params", items)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Metrics of one step, stamped with the time of this call."""
        now = int(time.time() * 1000)
        items = [(entity_name(key), float(value), now, step) for key, value in values.items()]
        self._record_items("metrics", items)

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the run, cut at MLflow's limit."""
        items = [(entity_name(key), str(value)[:TAG_LENGTH]) for key, value in values.items()]
        self._record_items("tags", items)

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file, or a folder with all that is in it, as it is now, into `folder` of the run."""
        self._file({"folder": folder}, path.name, path)

    def text(self, content: str, name: str) -> None:
        """A text file; `name` may have folders, as in `profile/profile.json`."""
        folder, _, file = name.rpartition("/")
        self._file({"folder": folder}, file, content.encode())

    def figure(self, figure: "Figure", name: str) -> None:
        """A matplotlib figure as it is now; `name` as in `plots/residuals.png`."""
        folder, _, file = name.rpartition("/")
        place = self._spool.place(file)
        figure.savefig(place, format=file.rpartition(".")[2])
        self._record({"kind": "artifact", "folder": folder, "file": self._spool.relative(place)})

    def dataset(
        self,
        name: str,
        digest: str,
        source: str,
        schema: Mapping[str, str],
        rows: int,
        context: str = "training",
    ) -> None:
        """The data that the run took in, as a dataset input; the data itself is not read.

        Args:
            digest: MLflow keeps its first 36 characters, the input's tag `digest` all of them.
            source: URI; a password in it is not kept.
            schema: type by column.
        """
        columns = [
            {"name": column, "type": kind, "required": False} for column, kind in schema.items()
        ]
        self._record(
            {
                "kind": "dataset",
                "name": name[:500],
                "digest": digest,
                "source": without_secrets(source),
                "schema": json.dumps({"mlflow_colspec": columns}),
                "profile": json.dumps({"num_rows": rows, "num_columns": len(columns)}),
                "context": context,
            }
        )

    def flush(self, timeout: float = 30.0) -> Recorded:
        """Wait until MLflow has confirmed everything so far, at most `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending, timeout)
        return self.state()

    def state(self) -> Recorded:
        """How the recording stands now."""
        with self._changed:
            return Recorded(len(self._pending), self._refused, self._cause)

    def close(self, status: Status | None, timeout: float = 60.0) -> Recorded:
        """End the run and the recording; waits at most about `timeout` seconds.

        What isn't confirmed by then stays in the spool: `open_run` on it, then `close(None)`,
        finishes the recording. A spool that is confirmed whole is removed.

        Args:
            status: of the run; None leaves it as the spool or MLflow has it.
        """
        if self._closing:
            return self.state()
        if status is not None:
            self._record({"kind": "status", "status": status, "end_time": int(time.time() * 1000)})
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        recorded = self.flush(timeout)
        self._given_up.set()
        self._sender.join(5.0)
        self._spool.close(remove=recorded.complete)
        return recorded

    def _record_items(self, kind: str, items: list[Any]) -> None:
        for start in range(0, len(items), _CHUNK[kind]):
            self._record({"kind": kind, "items": items[start : start + _CHUNK[kind]]})

    def _file(self, event: Event, name: str, content: Path | bytes) -> None:
        place = self._spool.place(name)
        if isinstance(content, bytes):
            place.write_bytes(content)
        elif content.is_dir():
            shutil.copytree(content, place)
        else:
            shutil.copy2(content, place)
        self._record({**event, "kind": "artifact", "file": self._spool.relative(place)})

    def _record(self, event: Event) -> None:
        with self._changed:
            if self._closing:
                raise RuntimeError(f"the recording of run {self.run_id} is closed")
            self._spool.append(event)
            self._pending.append(event)
            self._changed.notify_all()

    def _send_all(self) -> None:
        failures = 0
        while not self._given_up.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._pending:
                    return
                if not self._closing:
                    self._changed.wait_for(lambda: self._closing, _LINGER)
                batch = _next_batch(self._pending)
            try:
                refused = list(self._refusals(batch))
                failures = 0
            except Exception as error:  # noqa: BLE001
                # whatever it is, what is spooled must not be lost with this thread
                self._cause = without_secrets(f"{type(error).__name__}: {error}")
                _log.debug("MLflow: %s", self._cause)
                self._given_up.wait(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1
                continue
            with self._changed:
                if self._given_up.is_set():
                    return  # the spool is another's now, who will send this once more
                for event in refused:
                    self._spool.refuse(event)
                self._refused += len(refused)
                for _ in batch:
                    self._pending.popleft()
                self._spool.confirm(batch)
                self._changed.notify_all()

    def _refusals(self, batch: list[Event]) -> Iterator[Event]:
        """Send a batch; yield the smallest parts of it that MLflow refuses."""
        try:
            _send(self.client, self.run_id, batch, self._spool)
        except (MlflowException, OSError) as error:
            if not _is_refusal(error):
                raise
            parts = [[event] for event in batch]
            if len(batch) == 1:
                items = batch[0].get("items", [])
                parts = [[{**batch[0], "items": [item]}] for item in items]
                if len(parts) <= 1:
                    self._cause = without_secrets(str(error))
                    yield {**batch[0], "cause": self._cause}
                    return
            for part in parts:
                yield from self._refusals(part)


class _Spool:
    """A folder with a run's events in order, their files, and how many are confirmed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "files").mkdir(parents=True, exist_ok=True)
        self._lock: IO[bytes] = (folder / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RunError(f"Another process records into {folder}: wait for it to end.") from error
        path = folder / "events.jsonl"
        content = path.read_bytes() if path.exists() else b""
        # a line without an end was being written when its process died; it was never promised
        whole = content[: content.rfind(b"\n") + 1]
        self._events: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        self._events.truncate(len(whole))
        self._events.seek(len(whole))
        lines = whole.splitlines()
        self._confirmed = int(self._read("confirmed") or 0)
        self._unconfirmed = [json.loads(line) for line in lines[self._confirmed :]]
        self._files = len(lines)

    @property
    def run_id(self) -> str | None:
        text = self._read("run.json")
        return None if text is None else str(json.loads(text)["run_id"])

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._write("run.json", json.dumps({"run_id": run_id}))

    def unconfirmed(self) -> list[Event]:
        return self._unconfirmed

    def append(self, event: Event) -> None:
        self._events.write(json.dumps(event).encode() + b"\n")
        self._events.flush()

    def place(self, name: str) -> Path:
        """A path for a file of that name that nothing else uses."""
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is no name of a file")
        while True:
            folder = self.folder / "files" / f"{self._files:06}"
            self._files += 1
            with suppress(FileExistsError):
                folder.mkdir()
                return folder / name

    def relative(self, place: Path) -> str:
        return place.relative_to(self.folder).as_posix()

    def confirm(self, events: list[Event]) -> None:
        self._confirmed += len(events)
        self._write("confirmed", str(self._confirmed))
        for event in events:
            if event["kind"] == "artifact":
                shutil.rmtree((self.folder / event["file"]).parent, ignore_errors=True)

    def refuse(self, event: Event) -> None:
        with (self.folder / "refused.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def close(self, remove: bool = False) -> None:
        self._events.close()
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def _read(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text() if path.exists() else None

    def _write(self, name: str, text: str) -> None:
        (self.folder / f"{name}.part").write_text(text)
        os.replace(self.folder / f"{name}.part", self.folder / name)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings by dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def entity_name(name: str) -> str:
    """A name that MLflow takes for a metric, parameter or tag; a changed one ends in a hash."""
    taken = re.sub(r"[^/\w.\- :]", "_", name)[:240]
    if not taken or posixpath.normpath(taken) != taken or taken.startswith(("/", "..")):
        taken = taken.replace("/", "_").replace("..", "__") or "_"
        taken = taken if taken != "." else "_"
    return taken if taken == name else f"{taken}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def without_secrets(text: str) -> str:
    """The text with what stands before the @ of its URLs taken out."""
    return re.sub(r"(\w://)[^/\s@]+@", r"\1***@", text)


def _answered(request: Callable[[], str], where: str, timeout: float) -> str:
    deadline = time.monotonic() + timeout
    pauses = iter(_PAUSES)
    while True:
        try:
            return request()
        except (MlflowException, OSError) as error:
            if _is_refusal(error) or getattr(error, "error_code", "") == _NO_SUCH_RUN:
                raise
            pause = next(pauses, _PAUSES[-1])
            if time.monotonic() + pause > deadline:
                raise RunError(
                    f"MLflow at {where} did not answer within {timeout:g} s: "
                    f"{without_secrets(str(error))}. Start it, or set MLFLOW_TRACKING_URI to one "
                    "that runs."
                ) from error
            time.sleep(pause)


def _run_id(
    client: MlflowClient,
    existing: str | None,
    experiment: str,
    run_name: str,
    tags: Mapping[str, str],
    artifact_location: str | None,
) -> str:
    if existing is not None:
        client.update_run(existing, status="RUNNING")
        return existing
    known = client.get_experiment_by_name(experiment)
    if known is None:
        try:
            experiment_id = client.create_experiment(experiment, artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            known = client.get_experiment_by_name(experiment)
    if known is not None:
        experiment_id = known.experiment_id
    taken = {entity_name(key): str(value)[:TAG_LENGTH] for key, value in tags.items()}
    return str(client.create_run(experiment_id, tags=taken, run_name=run_name).info.run_id)


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def _next_batch(pending: deque[Event]) -> list[Event]:
    """The events at the head of the queue that one request takes."""
    batch: list[Event] = []
    counts = dict.fromkeys(_BATCH, 0)
    for event in pending:
        kind = event["kind"]
        if kind not in counts:
            return batch or [event]
        counts[kind] += len(event["items"])
        if batch and (counts[kind] > _BATCH[kind] or sum(counts.values()) > 1000):
            return batch
        batch.append(event)
    return batch


def _send(client: MlflowClient, run_id: str, batch: list[Event], spool: _Spool) -> None:
    match batch[0]["kind"]:
        case "artifact":
            place, folder = spool.folder / batch[0]["file"], batch[0]["folder"]
            if place.is_dir():
                client.log_artifacts(run_id, str(place), posixpath.join(folder, place.name))
            else:
                client.log_artifact(run_id, str(place), folder or None)
        case "dataset":
            client.log_inputs(run_id, [_dataset_input(batch[0])])
        case "status":
            client.set_terminated(run_id, batch[0]["status"], batch[0]["end_time"])
        case _:
            items: dict[str, list[Any]] = {kind: [] for kind in _BATCH}
            for event in batch:
                items[event["kind"]] += event["items"]
            client.log_batch(
                run_id,
                metrics=[Metric(*item) for item in items["metrics"]],
                params=[Param(*item) for item in dict(items["params"]).items()],
                tags=[RunTag(*item) for item in items["tags"]],
                synchronous=True,
            )


def _dataset_input(event: Event) -> DatasetInput:
    schema = event["schema"] if len(event["schema"]) <= SCHEMA_LENGTH else None
    scheme = event["source"].partition("://")[0] if "://" in event["source"] else "local"
    source_type = {"file": "local", "https": "http"}.get(scheme, scheme)
    dataset = Dataset(
        name=event["name"],
        digest=event["digest"][:DIGEST_LENGTH],
        source_type=source_type,
        source=json.dumps({"url" if source_type == "http" else "uri": event["source"]}),
        schema=schema,
        profile=event["profile"],
    )
    tags = [InputTag("mlflow.data.context", event["context"]), InputTag("digest", event["digest"])]
    return DatasetInput(dataset, tags)

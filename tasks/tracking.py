"""The recorder of an MLflow run: to disk first, sent after, from one thread in the background.

What is recorded is appended to a spool before the call returns, so training never waits for a
tracking server and nothing is lost with the server or with this process. Sending is repeated
until the server confirms; every kind of event may be sent twice without harm.
"""

import io
import json
import logging
import math
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.engine.errors import RunError
from tasks.engine.secrets import without_secrets
from tasks.sending import (
    PARAM_LENGTH,
    TAG_LENGTH,
    entity_name,
    flattened,
    is_refusal,
    next_batch,
    send,
)
from tasks.spool import Event, Spool
from tasks.tracking_store import PAUSES, answered, is_gone, run_id_of, tracking_client

if TYPE_CHECKING:  # a run without plots needs no matplotlib
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]

_CHUNK = {"metrics": 500, "params": 50, "tags": 50}

# Seconds that events are gathered before a batch is sent: 50 times what the last one took.
_LINGER, _LONGEST_LINGER, _LINGER_SHARE = 0.1, 5.0, 50

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
    renewed: bool = False,
) -> "Recorder":
    """Start or continue an MLflow run whose spool is `spool_dir`.

    A spool that is there continues its own run, and what it holds unconfirmed is sent first. Where
    that run is gone, deleted or in another store, a new one takes its place if it is `renewed`.

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
    client = tracking_client(tracking_uri)
    spool = Spool(spool_dir)
    try:
        run_id = spool.run_id or existing_run_id
        if existing_run_id not in (None, run_id) and not renewed:
            raise RunError(
                f"{spool_dir} holds the recording of MLflow run {run_id}, not of {existing_run_id}."
            )

        def opened(run_id: str | None) -> str:
            return answered(
                lambda: run_id_of(client, run_id, experiment, run_name, tags, artifact_location),
                without_secrets(tracking_uri),
                timeout,
            )

        try:
            run_id = opened(run_id)
        except MlflowException as error:
            if run_id is None or not renewed or not is_gone(error):
                raise
            run_id = opened(None)
        spool.run_id = run_id
    except BaseException:
        spool.close()
        raise
    return Recorder(client, run_id, spool)


class Recorder:
    """Records one MLflow run; made by `open_run`, ended by `close` or as a context.

    Left by an exception the run is FAILED, by a KeyboardInterrupt KILLED.
    """

    def __init__(self, client: MlflowClient, run_id: str, spool: Spool) -> None:
        self.client = client
        self.run_id = run_id
        self._spool = spool
        self._pending: deque[Event] = deque(spool.unconfirmed())
        self._changed = threading.Condition()
        self._closing = False
        self._flushing = 0
        self._given_up = threading.Event()
        self._refused = 0
        self._confirmed = 0
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
                self._file(f"params/{key.replace('/', '_')}.txt", text.encode())
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
        self._file(f"{folder}/{path.name}", path)

    def text(self, content: str, name: str) -> None:
        """A text file; `name` may have folders, as in `profile/profile.json`."""
        self._file(name, content.encode())

    def figure(self, figure: "Figure", name: str) -> bytes:
        """A matplotlib figure as it is now, `name` as in `plots/residuals.png`; its content."""
        drawn = io.BytesIO()
        figure.savefig(drawn, format=name.rpartition(".")[2])
        self._file(name, drawn.getvalue())
        return drawn.getvalue()

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

    def flush(self, timeout: float = 30.0, limit: float | None = None) -> Recorded:
        """Wait until MLflow has confirmed everything so far, `timeout` seconds for each answer.

        What comes in meanwhile is neither waited for nor counted. `limit` bounds the whole wait, in
        seconds.
        """
        until = math.inf if limit is None else time.monotonic() + limit
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            goal = self._confirmed + len(self._pending)
            while self._confirmed < goal:
                before = self._confirmed
                patience = max(0.0, min(timeout, until - time.monotonic()))
                if not self._changed.wait_for(lambda: self._confirmed > before, patience):  # noqa: B023
                    break
            self._flushing -= 1
            return Recorded(max(0, goal - self._confirmed), self._refused, self._cause)

    def state(self) -> Recorded:
        """How the recording stands now."""
        with self._changed:
            return Recorded(len(self._pending), self._refused, self._cause)

    def last_step(self, name: str) -> int:
        """The last step of a metric that was recorded, sent or not; 0 where there is none.

        Where MLflow is away just now that of what was not sent: a point that comes twice is better
        than a training that does not begin.
        """
        key = entity_name(name)
        with self._changed:
            spooled = [event["items"] for event in self._pending if event["kind"] == "metrics"]
        steps = [item[3] for items in spooled for item in items if item[0] == key]
        with suppress(MlflowException, OSError):
            if key in self.client.get_run(self.run_id).data.metrics:
                steps += [point.step for point in self.client.get_metric_history(self.run_id, key)]
        return max(steps, default=0)

    def close(
        self, status: Status | None, timeout: float = 60.0, limit: float | None = None
    ) -> Recorded:
        """End the run and the recording; waits as `flush` does.

        What isn't confirmed by then stays in the spool: `open_run` on it, then `close(None)`,
        finishes the recording. A spool that is confirmed whole is removed.

        Args:
            status: of the run; None leaves it as the spool or MLflow has it.
        """
        if self._closing:
            return self.state()
        whole = False
        try:
            if status is not None:
                ended = int(time.time() * 1000)
                self._record({"kind": "status", "status": status, "end_time": ended})
            whole = True
        finally:  # on a full disk, too
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            recorded = self.flush(timeout, limit)
            self._given_up.set()
            self._sender.join(5.0)
            self._spool.close(remove=whole and recorded.complete)
        return recorded

    def _record_items(self, kind: str, items: list[Any]) -> None:
        for start in range(0, len(items), _CHUNK[kind]):
            self._record({"kind": kind, "items": items[start : start + _CHUNK[kind]]})

    def _file(self, name: str, content: Path | bytes) -> None:
        folder, _, file = name.rpartition("/")
        place = self._spool.place(file)
        if isinstance(content, bytes):
            place.write_bytes(content)
        elif content.is_dir():
            shutil.copytree(content, place)
        else:
            shutil.copy2(content, place)
        self._record({"kind": "artifact", "folder": folder, "file": self._spool.relative(place)})

    def _record(self, event: Event) -> None:
        with self._changed:
            if self._closing:
                raise RuntimeError(f"the recording of run {self.run_id} is closed")
            self._spool.append(event)
            self._pending.append(event)
            self._changed.notify_all()

    def _send_all(self) -> None:
        failures, linger = 0, _LINGER
        while not self._given_up.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._pending:
                    return
                self._changed.wait_for(lambda: self._closing or self._flushing, linger)
                batch = next_batch(self._pending)
            began = time.monotonic()
            try:
                refused = list(self._refusals(batch))
                failures = 0
                took = time.monotonic() - began
                linger = max(_LINGER, min(took * _LINGER_SHARE, _LONGEST_LINGER))
            except Exception as error:  # noqa: BLE001
                # whatever it is, what is spooled must not be lost with this thread
                self._cause = without_secrets(f"{type(error).__name__}: {error}")
                _log.debug("MLflow: %s", self._cause)
                self._given_up.wait(PAUSES[min(failures, len(PAUSES) - 1)])
                failures += 1
                continue
            with self._changed:
                if self._given_up.is_set():
                    return  # the spool is another's now, who will send this once more
                # a full disk does not take it; the thread goes on, and the count is written later
                with suppress(OSError):
                    for event in refused:
                        self._spool.refuse(event)
                with suppress(OSError):
                    self._spool.confirm(batch)
                self._refused += len(refused)
                self._confirmed += len(batch)
                for _ in batch:
                    self._pending.popleft()
                self._changed.notify_all()

    def _refusals(self, batch: list[Event]) -> Iterator[Event]:
        """Send a batch; yield the smallest parts of it that MLflow refuses."""
        try:
            send(self.client, self.run_id, batch, self._spool)
        except (MlflowException, OSError) as error:
            if not is_refusal(error):
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

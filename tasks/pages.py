"""Artifacts on their way to Prefect's pages, from one thread beside the run.

A Prefect server that is slow or away for a while neither slows nor fails the run: what it has not
taken is tried again, a newer content of the same page in place of an older one.
"""

import contextvars
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.logging import get_run_logger

REQUEST_SECONDS = 10.0
END_SECONDS = 5.0
GAP_SECONDS = 3.0  # between two contents
_PAUSE_SECONDS = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Page:
    """An artifact of the flow run: `data` is markdown, a list of rows, or a share in percent.

    `key` has lower-case letters, digits and dashes; runs with one key are one page's versions.
    """

    key: str
    kind: Literal["markdown", "table", "progress"]
    data: Any
    description: str


class Pages:
    """The artifacts of one flow run: each made once and changed after. Made by `pages_of`."""

    def __init__(self, flow_run_id: str) -> None:
        self._flow_run_id = UUID(flow_run_id)
        self._waiting: dict[str, Page] = {}
        self._made: dict[str, UUID] = {}
        self._clients = ExitStack()
        self._client: SyncPrefectClient | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        # in this context, which may hold settings of Prefect's
        here = contextvars.copy_context()
        self._sender = threading.Thread(
            target=here.run, args=(self._send_all,), name="prefect-pages", daemon=True
        )
        self._sender.start()

    def put(self, page: Page) -> None:
        """Shows a page, or its new content; returns at once."""
        with self._changed:
            self._waiting[page.key] = page
            self._changed.notify_all()

    def close(self, timeout: float = END_SECONDS) -> list[str]:
        """Waits for what is on its way, at most `timeout` seconds; keys that were not taken."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        self._sender.join(timeout)
        self._given_up.set()
        with self._changed:
            return list(self._waiting)

    def _send_all(self) -> None:
        with self._clients:
            self._send_until_closed()

    def _send_until_closed(self) -> None:
        while not self._given_up.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
                if not self._waiting:
                    return
                page = next(iter(self._waiting.values()))
            try:
                self._send(page)
            except Exception as error:  # noqa: BLE001
                # whatever it is, it is about a page: the run goes on
                _log.debug("Prefect did not take %s: %s", page.key, error)
                # the next one is another's: a client whose server went away may not find it again
                self._client = None
                self._clients.close()
                self._given_up.wait(_PAUSE_SECONDS)
                continue
            with self._changed:
                if self._waiting.get(page.key) is page:
                    del self._waiting[page.key]
            self._closing.wait(GAP_SECONDS)

    def _send(self, page: Page) -> None:
        # Prefect's own form of a table is JSON within JSON
        data = json.dumps(page.data) if page.kind == "table" else page.data
        if self._client is None:
            settings = {"timeout": REQUEST_SECONDS}
            self._client = self._clients.enter_context(
                get_client(sync_client=True, httpx_settings=settings)
            )
        if made := self._made.get(page.key):
            self._client.update_artifact(
                made, ArtifactUpdate(data=data, description=page.description)
            )
            return
        artifact = self._client.create_artifact(
            ArtifactCreate(
                key=page.key,
                type=page.kind,
                data=data,
                description=page.description,
                flow_run_id=self._flow_run_id,
            )
        )
        self._made[page.key] = artifact.id


@contextmanager
def pages_of(flow_run_id: str) -> Iterator[Pages]:
    """The artifacts of this flow run; within a flow alone, whose log tells what was not taken."""
    pages = Pages(flow_run_id)
    try:
        yield pages
    except BaseException:
        pages.close(0)  # who interrupts a run wants its workers back
        raise
    if missing := pages.close():
        get_run_logger().warning(
            "Prefect did not take the artifacts %s in time; MLflow has what they show.",
            ", ".join(missing),
        )

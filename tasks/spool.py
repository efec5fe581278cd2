"""What was recorded and isn't confirmed yet, on disk: it outlives the process and the server."""

import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tasks.engine.errors import RunError
from tasks.engine.home import writing

RUN = "run.json"  # names the run, once there is one

Event = dict[str, Any]


class Spool:
    """A folder with a run's events in order, their files, and how many are confirmed.

    Raises:
        RunError: another process records into this folder.
    """

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
        text = self._read(RUN)
        return None if text is None else str(json.loads(text)["run_id"])

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._write(RUN, json.dumps({"run_id": run_id}))

    def unconfirmed(self) -> list[Event]:
        return self._unconfirmed

    def append(self, event: Event) -> None:
        with writing(str(self.folder)):
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
            # without events nothing is sent once more, should the rest stay
            (self.folder / "events.jsonl").unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def _read(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text() if path.exists() else None

    def _write(self, name: str, text: str) -> None:
        (self.folder / f"{name}.part").write_text(text)
        os.replace(self.folder / f"{name}.part", self.folder / name)

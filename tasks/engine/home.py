"""BOOSTLINE_HOME: what a run keeps, by key, on a local path or any fsspec URI.

Whatever is read back is verified against the digest that was written with it: a file that was
cut short or altered counts as absent.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ValidationError

from tasks.engine.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

Model = TypeVar("Model", bound=BaseModel)


def digest_of(*parts: object) -> str:
    """128 bits of BLAKE2b over the parts' canonical JSON, as hexadecimal text."""
    text = json.dumps(parts, sort_keys=True, default=_plain, ensure_ascii=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"not part of a key: {type(value)}")


@dataclass(frozen=True)
class Home:
    """The folder that holds everything Boostline keeps; nothing is created until it is written."""

    root: str

    @classmethod
    def at(cls, root: str | None = None) -> "Home":
        """`root`, or BOOSTLINE_HOME, or `.boostline` here; a local path is made absolute."""
        root = root or os.environ.get("BOOSTLINE_HOME") or ".boostline"
        return cls(root if "://" in root else str(Path(root).expanduser().absolute()))

    @property
    def local(self) -> Path:
        """Where this host keeps what can't live on object storage (databases, spools, logs).

        BOOSTLINE_LOCAL names it, as a worker of Prefect's stands in a folder that goes with the
        run; `.boostline` here without.
        """
        if "://" not in self.root:
            return Path(self.root)
        return Path(os.environ.get("BOOSTLINE_LOCAL") or ".boostline").expanduser().absolute()

    def path(self, *parts: str) -> str:
        return "/".join([self.root.rstrip("/"), *parts])

    def prepare(self) -> None:
        """Makes the folder where it is a local one, and this host's part of it where not.

        Raises:
            UserError: it can't be made or written to, or its file system is not known here.
        """
        try:
            filesystem, path = fsspec.core.url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise UserError(f"BOOSTLINE_HOME={self.root!r}: {str(error).rstrip('.')}.") from None
        if isinstance(filesystem, LocalFileSystem) and (closed := _closed(path)):
            raise UserError(
                f"BOOSTLINE_HOME ({self.root}) can't be written: {closed}. Set it to a folder of "
                "yours."
            )
        if "://" in self.root and (closed := _closed(str(self.local))):
            raise UserError(
                f"{self.local} can't be written, where this host keeps what BOOSTLINE_HOME "
                f"({self.root}) can't hold: {closed}. Set BOOSTLINE_LOCAL to a folder of yours."
            )

    def load(self, model: type[Model], *parts: str) -> Model | None:
        """What `save` wrote, or None where there is nothing whole of this shape."""
        filesystem, path = fsspec.core.url_to_fs(self.path(*parts))
        try:
            content = bytes(filesystem.cat_file(path))
        except FileNotFoundError:
            return None
        seal, _, body = content.partition(b"\n")
        if seal != _seal(body):
            return None
        try:
            return model.model_validate_json(body)
        except ValidationError:  # another version wrote it
            return None

    def save(self, value: BaseModel, *parts: str) -> None:
        body = value.model_dump_json().encode()
        write_atomically(self.path(*parts), _seal(body) + b"\n" + body)


def _closed(folder: str) -> str:
    """Why a local folder can't be written, made if it isn't there; nothing where it can."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        cause = error.strerror or str(error)
        return cause[:1].lower() + cause[1:]
    return "" if os.access(folder, os.W_OK | os.X_OK) else "permission denied"


def _seal(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).hexdigest().encode()


@contextmanager
def writing(uri: str) -> Iterator[None]:
    """Tells of a full or closed disk by the place `uri`, where something is being written.

    Raises:
        UserError: there is no space left, or no permission to write.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"There is no space left to write {uri} ({os.strerror(error.errno)}). Free some, "
                "or set BOOSTLINE_HOME to a folder on a larger disk."
            ) from None
        if error.errno in _CLOSED:
            raise UserError(f"{uri} can't be written: {os.strerror(error.errno)}.") from None
        raise


def write_atomically(uri: str, content: bytes) -> None:
    """Whole or not at all: written beside, synced and renamed where the file system can rename.

    Raises:
        UserError: as `writing`.
    """
    with writing(uri):
        _write_atomically(uri, content)


def _write_atomically(uri: str, content: bytes) -> None:
    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.makedirs(filesystem._parent(path), exist_ok=True)
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(path, content)
        return
    beside = f"{path}.{uuid4().hex}.part"
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.unlink(beside)

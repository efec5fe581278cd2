"""A source file as a stream of checked bytes: hashed, unpacked, held to its size, in UTF-8.

Every format reads through here, so a file that is cut short, packed too tightly, in another
encoding or changed while it is read is met with the same sentence whatever its format.
"""

import codecs
import io
import zlib
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b
from typing import Any

import fsspec

from tasks.engine.config import DataConfig
from tasks.engine.dataset import Frozen
from tasks.engine.errors import RunError, UserError
from tasks.engine.secrets import resolved

CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
_PACKED = {
    b"PK\x03\x04": "a zip archive (or an Excel workbook)",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"%PDF": "a PDF document",
}
_BINARY = ((b"PAR1", "a Parquet", "parquet"), (b"ARROW1", "an Arrow", "arrow"))
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class SourceFile(Frozen):
    """One unit of a source: a file, or the whole of a database query, a loader or the demo.

    `path` is relative to the source's root and names its rows; `shown` is how messages name it.
    `modified` is a time in nanoseconds or an ETag, "" where the file system knows neither.
    """

    uri: str
    path: str
    size: int
    modified: str
    shown: str


class Input:
    """A source file that readers pass over; every full pass must see the same bytes."""

    def __init__(
        self,
        file: SourceFile,
        config: DataConfig,
        scratch: str = "",
        texts: Collection[str] = (),
    ) -> None:
        """`scratch` is a folder for temporary files, which the caller removes.

        `texts` are columns whose type is not to be guessed.
        """
        self.file = file
        self.config = config
        self.scratch = scratch
        self.texts = texts
        self.digests: list[str] = []
        self.notes: list[str] = []
        self.opened_bytes = 0
        self.lines = 0
        self.tail = b""

    @property
    def shown(self) -> str:
        return self.file.shown

    @property
    def digest(self) -> str:
        """BLAKE2b of the file's bytes as stored. Raises RunError before a pass has ended."""
        if not self.digests:
            raise RunError(f"{self.shown} was not read to its end.")
        if len(set(self.digests)) > 1:
            raise changed(self.shown)
        return self.digests[0]

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes, unpacked; the digest is known after the last."""
        raw = self._raw()
        first = next(raw, b"")
        for magic, what in _PACKED.items():
            if first.startswith(magic):
                raise UserError(
                    f"{self.shown} is {what}. Unpack it, or pack it with gzip: plain and gzip "
                    "files are read."
                )
        if first.startswith(GZIP):
            return self._unpacked(_chain(first, raw))
        if self.file.uri.endswith(".gz"):
            raise UserError(f"{self.shown} is named .gz but is not a gzip file.")
        return _chain(first, raw)

    def text(self) -> Iterator[bytes]:
        """The unpacked bytes as UTF-8 without a byte order mark, checked for what is no text.

        After the last, `tail` holds the end of the text and `lines` the number of its lines.
        """
        chunks = self.chunks()
        first = next(chunks, b"")
        for magic, name, setting in _BINARY:
            if first.startswith(magic):
                raise UserError(f"{self.shown} is {name} file. Set data.format={setting}.")
        encoding = self._encoding(first)
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        plain = encoding == "utf-8"
        line, start, last = 1, True, b""
        for chunk in _chain(first, chunks, b""):
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                place = line + max(0, error.object[: error.start].count(b"\n"))
                raise self._undecodable(error, place) from None
            whole = chunk if plain else text.encode("utf-8", "surrogatepass")
            if start and whole.startswith(codecs.BOM_UTF8):
                whole = whole[len(codecs.BOM_UTF8) :]
            start = start and not whole
            zero = whole.find(b"\0")
            if zero >= 0:
                raise UserError(
                    f"{self.shown}, line {line + whole[:zero].count(bytes([10]))}: there is a NUL "
                    "byte, so this is no text file, or it was damaged. Write the file again."
                )
            line += whole.count(b"\n")
            if whole:
                last = whole[-8:]
                yield whole
        self.lines, self.tail = line, last

    def _encoding(self, first: bytes) -> str:
        """The text's encoding by its proper name. Raises UserError where it is plainly wrong."""
        name = self.config.encoding
        try:
            encoding = codecs.lookup(name).name
            codecs.getincrementaldecoder(encoding)("strict").decode(b"")
        except (LookupError, AttributeError, ValueError, TypeError):
            raise UserError(
                f"data.encoding is {name!r}, which is no text encoding. Common ones are utf-8, "
                "latin-1, cp1252 and utf-16."
            ) from None
        zeros = first[:1000].count(b"\0")
        is_utf16 = first.startswith(_UTF16) or zeros > max(2, len(first[:1000]) // 4)
        if is_utf16 and not encoding.startswith(("utf-16", "utf-32")):
            raise UserError(
                f"{self.shown} is not {name}: it looks like UTF-16. Set data.encoding=utf-16."
            )
        return encoding

    def _undecodable(self, error: UnicodeDecodeError, line: int) -> UserError:
        byte = error.object[error.start : error.start + 1].hex().upper()
        if self.config.encoding.lower() in ("utf-8", "utf8"):
            hint = "It is probably latin-1 or cp1252: set data.encoding=latin-1."
        else:
            hint = "Set data.encoding to the one that it was written in."
        return UserError(
            f"{self.shown}, line {line}: byte 0x{byte} is not {self.config.encoding} text. {hint}"
        )

    def _raw(self) -> Iterator[bytes]:
        """The stored bytes; the digest is taken on the way."""
        digest = blake2b(digest_size=16)
        with open_source(self.file) as stream:
            while chunk := self._read(stream):
                digest.update(chunk)
                yield chunk
        self.digests.append(digest.hexdigest())

    def _read(self, stream: Any) -> bytes:
        """Raises RunError where a disk of this host fails; remote storage may answer again."""
        try:
            return bytes(stream.read(CHUNK))
        except OSError as error:
            if "://" in self.file.uri:
                raise
            cause = error.strerror or str(error) or type(error).__name__
            raise RunError(f"{self.shown} can't be read to its end: {cause}.") from error

    def _unpacked(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Members of a gzip file, at most CHUNK bytes at a time, up to data.max_gigabytes."""
        limit = self.config.max_gigabytes * 1e9
        unpacker = zlib.decompressobj(wbits=31)
        opened, begun, pending = 0, False, False
        for chunk in chunks:
            data = chunk
            while data or pending:
                if unpacker.eof:
                    data = data.lstrip(b"\0")  # padding between members, as gzip itself allows
                    if not data:
                        break
                    unpacker = zlib.decompressobj(wbits=31)
                try:
                    piece = unpacker.decompress(data, CHUNK)
                except zlib.error as error:
                    raise UserError(
                        f"{self.shown} is a damaged gzip file ({error}). Write it again."
                    ) from None
                begun = True
                opened += len(piece)
                if opened > limit:
                    raise too_large(self.shown, self.file.size, self.config.max_gigabytes)
                pending = len(piece) == CHUNK and not unpacker.eof
                data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                if piece:
                    yield piece
        if begun and not unpacker.eof:
            raise UserError(f"{self.shown} is a gzip file that was cut short. Write it again.")
        self.opened_bytes = opened


def stream(chunks: Iterable[bytes]) -> io.BufferedReader:
    """Chunks as a file that reads as many bytes as it is asked for, while there are."""
    return io.BufferedReader(_ChunkStream(chunks), CHUNK)


class _ChunkStream(io.RawIOBase):
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def open_source(file: SourceFile) -> Any:
    """The stored bytes of a file. Raises UserError where it is gone or closed to us."""
    try:
        if "://" not in file.uri:
            return open(file.uri, "rb")
        return fsspec.open(resolved(file.uri), "rb").open()
    except FileNotFoundError:
        raise UserError(f"{file.shown} is gone: it was there when the source was listed.") from None
    except PermissionError:
        raise UserError(f"{file.shown} can't be read: permission denied.") from None


def changed(shown: str) -> UserError:
    return UserError(
        f"{shown} changed while it was read. Run again once nothing writes to it any more."
    )


def too_large(shown: str, size: int, gigabytes: float) -> UserError:
    return UserError(
        f"{shown} is {size:,} bytes and opens to more than data.max_gigabytes={gigabytes:g}. Raise "
        "it if the source is to be trusted."
    )


def _chain(first: bytes, rest: Iterable[bytes], *last: bytes) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest
    yield from last

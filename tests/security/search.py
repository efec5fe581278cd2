"""Looking through everything that a run wrote."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path


def files_of(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        yield from ([place] if place.is_file() else (p for p in place.rglob("*") if p.is_file()))


def found_in(places: Iterable[Path], secrets: Iterable[str]) -> list[tuple[str, str]]:
    """The files, opened where they are packed, that hold a secret, in any common encoding."""
    wanted = [
        (secret, form)
        for secret in secrets
        for form in (secret.encode(), secret.encode("utf-16-le"), *_base64(secret))
    ]
    return [
        (str(path), secret)
        for path in files_of(places)
        for content in _contents(path)
        for secret, form in wanted
        if form in content
    ]


def _contents(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    yield content
    if content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content)
    elif content.startswith(b"\x78"):
        try:
            yield zlib.decompress(content)
        except zlib.error:
            return


def _base64(secret: str) -> Iterator[bytes]:
    """The secret within a longer text in base64, wherever it begins."""
    from base64 import b64encode

    for before in range(3):
        encoded = b64encode(b"\0" * before + secret.encode())
        # the ends depend on what stands beside
        yield encoded[(0, 2, 3)[before] : len(encoded) - 4]

"""Content digests remembered by file, size and time of change, so that nothing is read for them."""

from collections.abc import Callable

from tasks.engine.dataset import Dataset, Frozen
from tasks.engine.home import Home, digest_of


class _Remembered(Frozen):
    files: dict[str, tuple[int, str, str]]


def remembered(home: Home, source: str) -> Callable[[str, int, str], str | None]:
    """Looks up (uri, size, modified): the digest that was found when `source` was read before."""
    known = home.load(_Remembered, "digests", f"{digest_of(source)}.json")
    files = known.files if known else {}

    def look_up(uri: str, size: int, modified: str) -> str | None:
        stored = files.get(uri)
        return stored[2] if stored and modified and stored[:2] == (size, modified) else None

    return look_up


def remember(home: Home, dataset: Dataset) -> None:
    """Keeps the digests of a dataset whose content has been read."""
    files = {
        file.uri: (file.size, file.modified, file.digest) for file in dataset.files if file.digest
    }
    home.save(_Remembered(files=files), "digests", f"{digest_of(dataset.source)}.json")

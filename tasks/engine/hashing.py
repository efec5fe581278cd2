"""One hash for everything that is decided by chance: the same row always draws the same number.

A row is known by its position (path relative to the source's root, row number in the file), so
a decision depends neither on the cluster nor on files that were appended later.
"""

from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Float64 = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: UInt64) -> UInt64:
    """splitmix64's finaliser (Steele, Lea, Flood, 2014): uint64 (n,) to well mixed uint64 (n,)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(text: str) -> np.uint64:
    """64 bits of BLAKE2b of the UTF-8 bytes."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def positions(path: str, start: int, rows: int, like: Any = None) -> UInt64:
    """Position keys uint64 (rows,) of rows `start` to `start + rows` of the file `path`.

    They are where the array `like` is, on the host where it is None.
    """
    numbers = np.arange(start + 1, start + rows + 1, dtype=np.uint64, like=like)
    return mix(key(path) + numbers * _GOLDEN)


def stream(salt: str, seed: int) -> np.uint64:
    """A key that sets one use of chance ("split", "sample", ...) apart from every other."""
    return key(f"{salt}:{seed}")


def uniform(position: UInt64, stream_key: np.uint64) -> Float64:
    """Float64 (n,) in [0, 1), 53 bits each."""
    bits = mix(position ^ stream_key)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

"""Damage as disks, transfers and hands do it: bytes changed, cut, left out, doubled, put in."""

from random import Random

INSERTED = (
    b'"', b",", b"\n", b"\r", b"\0", b"-", b"{", b"}", b"[", b"]", b"=", b" ", b"\xff", b"9" * 30,
    b"nan", b"1e400", b"\xef\xbb\xbf", b"\x1f\x8b", b"PAR1",
)  # fmt: skip
EXTREMES = (0, 1, 127, 128, 255)


def mutated(content: bytes, random: Random) -> bytes:
    """`content` with one to five changes, most often one; now and then near the end, where
    binary formats keep what they say of themselves."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        if not changed:
            break
        at = random.randrange(len(changed))
        if random.random() < 0.4:
            at = max(0, len(changed) - 1 - random.randrange(800))
        _change(changed, at, random)
    return bytes(changed)


def _change(content: bytearray, at: int, random: Random) -> None:
    kind = random.random()
    if kind < 0.25:
        content[at] ^= 1 << random.randrange(8)
    elif kind < 0.45:
        content[at] = random.randrange(256)
    elif kind < 0.55:
        content[at] = random.choice(EXTREMES)
    elif kind < 0.62:
        del content[at:]
    elif kind < 0.72:
        del content[at : at + random.randrange(1, 50)]
    elif kind < 0.82:
        content[at:at] = random.choice(INSERTED)
    elif kind < 0.90:
        start = random.randrange(len(content))
        content[at:at] = content[start : start + random.randrange(1, 100)]
    else:
        length = random.randrange(1, 16)
        content[at : at + length] = random.randbytes(length)

"""What goes wrong, as sentences: the thing, its value, what would be accepted, the way out."""

from collections.abc import Iterable
from difflib import get_close_matches

from tasks.engine.secrets import without_secrets


class UserError(Exception):
    """The user's input is wrong: shown as one message without a traceback, exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


class RunError(Exception):
    """The run could not be finished though the input is right: exit code 1, no traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


def listing(names: Iterable[str], limit: int = 20) -> str:
    """`a, b, c and 4 more`: names in their own order, cut at `limit`."""
    known = [str(name) for name in names]
    shown = ", ".join(known[:limit])
    return shown if len(known) <= limit else f"{shown} and {len(known) - limit} more"


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'price'?`, or nothing where no known name is near."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return f" Did you mean {by_folded[found[0]]!r}?" if found else ""


def unknown_column(name: str, role: str, setting: str, columns: Iterable[str]) -> UserError:
    """`role` says what the column is for ("target"), `setting` where it was named."""
    known = list(columns)
    return UserError(
        f"The {role} column {name!r} ({setting}) is not in the table."
        f"{nearest(name, known)} Its columns are: {listing(known)}."
    )

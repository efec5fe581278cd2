"""Secrets: taken out of what is kept or shown, and named in place of being written.

`data.source` may hold `${NAME}` where a password or token stands. The name travels with the
configuration (to Prefect, MLflow and disk), the value is looked up in the environment where a
connection is opened, and nowhere else.
"""

import functools
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote, unquote

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = re.compile(r"\$\{(\w+)\}")
PREFIX = "BOOSTLINE_SOURCE_"
HIDDEN = "***"
SHORTEST = 6  # characters of a variable's value that is worth hiding

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_DATABASES = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")
_SECRET = re.compile(r"pass|pwd|secret|token|sig|key|credential|auth", re.IGNORECASE)
_VARIABLE = re.compile(r"pass|pwd|secret|token|_key$|credential|auth_string", re.IGNORECASE)
# `user:***@` and `user:${NAME}@` may stay
_HARMLESS = r"(?![^:/\s@]*:(?:\*\*\*|\$\{\w+\})@)"
_IN_TEXT = re.compile(rf"(\w://){_HARMLESS}[^/\s@]+@")
# a password with raw slashes, which SQLAlchemy takes
_ODD_IN_TEXT = re.compile(rf"(\w://){_HARMLESS}[^:/\s@]*:(?!\d+/)[^\s@]+@")


def redact(url: str) -> str:
    """The URL with passwords and secret parameters as `***`; other texts as they are."""
    for begin, end, _ in reversed(list(_places(url))):
        url = f"{url[:begin]}{HIDDEN}{url[end:]}"
    return url


def by_reference(url: str) -> tuple[str, dict[str, str]]:
    """The URL with a reference for each secret that is written out in it, and their values.

    `postgresql://me:s3cret@db/x` becomes `postgresql://me:${BOOSTLINE_SOURCE_PASSWORD}@db/x`.
    """
    values: dict[str, str] = {}
    for begin, end, name in reversed(list(_places(url))):
        if REFERENCE.search(url[begin:end]) or begin == end:
            continue
        variable = f"{PREFIX}{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}"
        while variable in values:
            variable += "_"
        values[variable] = unquote(url[begin:end])
        url = f"{url[:begin]}${{{variable}}}{url[end:]}"
    return url, values


def referred(url: str) -> dict[str, str]:
    """The environment variables that the URL refers to, those that are set."""
    names = REFERENCE.findall(url) if _SCHEME.match(url) else []
    return {name: os.environ[name] for name in names if name in os.environ}


def check_by_reference(url: str) -> None:
    """For configurations that are kept as they come, in Prefect's parameters.

    Raises:
        UserError: a secret is written out.
    """
    from tasks.engine.errors import UserError

    wanted, values = by_reference(url)
    if values:
        raise UserError(
            f"data.source={redact(url)!r} holds a secret, and Prefect keeps parameters in clear. "
            f"Write {wanted!r} and set {', '.join(values)} in the environment of the flow's "
            "process. Change the secret: it has been kept with this run."
        )


def resolved(url: str) -> str:
    """The URL with its references replaced, percent-encoded. For use at once: keep it nowhere.

    Raises:
        UserError: a variable is not set.
    """
    if not _SCHEME.match(url):
        return url
    from tasks.engine.errors import UserError

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise UserError(
                f"data.source={url!r} refers to the environment variable {found[1]}, which is not "
                f"set. Set it where Boostline runs: export {found[1]}=…"
            )
        return quote(os.environ[found[1]], safe="")

    return REFERENCE.sub(value, url)


def without_secrets(text: str) -> str:
    """The text without what stands before the @ of its URLs, and without the values of variables
    of this process that are named as secrets are (…TOKEN, …PASSWORD, …_KEY and the like)."""
    text = _ODD_IN_TEXT.sub(rf"\1{HIDDEN}@", _IN_TEXT.sub(rf"\1{HIDDEN}@", text))
    known = [value for value in _known() if value in text]
    for value in sorted(known, key=len, reverse=True):
        # not inside another word: a password may be a plain one
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])", HIDDEN, text)
    return text


def cleaned(error: BaseException) -> None:
    """Takes secrets out of the words of an error and of those behind it, in place."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        waiting += [current.__cause__, current.__context__]
        current.args = tuple(
            without_secrets(part) if isinstance(part, str) else part for part in current.args
        )
        # MLflow's exceptions keep their words a second time
        if isinstance(message := getattr(current, "message", None), str):
            current.message = without_secrets(message)  # type: ignore[attr-defined]


def with_clean_errors(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose errors leave it without secrets: Prefect keeps their words."""

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(*arguments, **options)
        except BaseException as error:
            cleaned(error)
            raise

    return call


@contextmanager
def clean_logs() -> Iterator[None]:
    """While the block runs, what any library of this process logs is without secrets."""
    before = logging.getLogRecordFactory()
    keep_logs_clean()
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


def keep_logs_clean() -> None:
    """As `clean_logs`, to the end of the process: for workers."""
    before = logging.getLogRecordFactory()

    def record(*arguments: Any, **options: Any) -> logging.LogRecord:
        made = before(*arguments, **options)
        try:
            text = made.getMessage()
        except (TypeError, ValueError):
            return made  # logging tells of a record that does not fit its arguments
        clean = without_secrets(text)
        if clean != text:
            made.msg, made.args = clean, ()
        if made.exc_info and made.exc_info[0] is not None:
            lines = traceback.format_exception(*made.exc_info)
            made.exc_text = without_secrets("".join(lines).rstrip())
        return made

    logging.setLogRecordFactory(record)


def _known() -> Iterator[str]:
    for name in list(os.environ):  # other threads take variables of their own away meanwhile
        value = os.environ.get(name, "")
        secret = _VARIABLE.search(name) or name.startswith(PREFIX)
        if secret and len(value) >= SHORTEST and not os.path.exists(value):
            yield value
            if (encoded := quote(value, safe="")) != value:
                yield encoded


def _places(url: str) -> Iterator[tuple[int, int, str]]:
    """Where secrets stand in a URL, in order, and what they are called."""
    scheme = _SCHEME.match(url)
    if not scheme:
        return
    start = scheme.end()
    name = scheme[1].split("+")[0].lower()
    end = _end_of_user(url, start, name in _DATABASES)
    if end > start:
        user, colon, _ = url[start:end].partition(":")
        if colon:
            yield start + len(user) + 1, end, "PASSWORD"
        elif name in ("http", "https"):
            yield start, end, "TOKEN"
    mark = url.find("?", end)
    if mark < 0:
        return
    place = mark + 1
    for pair in url[place:].partition("#")[0].split("&"):
        key, equals, _ = pair.partition("=")
        if equals and _SECRET.search(key):
            yield place + len(key) + 1, place + len(pair), key
        place += len(pair) + 1


def _end_of_user(url: str, start: int, is_database: bool) -> int:
    """Where the @ behind user and password is; `start` where there is none."""
    netloc = re.compile(r"[^/?#]*").match(url, start)
    assert netloc is not None
    at = url.rfind("@", start, netloc.end())
    if at < 0 and is_database:
        # SQLAlchemy takes raw slashes and question marks in a password
        odd = re.compile(r"[^:/@]*:[^@]*@").match(url, start)
        at = odd.end() - 1 if odd else -1
    return at if at >= 0 else start

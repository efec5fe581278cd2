"""Dates in the names of sources: `s3://sales/{date}/` is another folder every day.

`{date}` is the day that a run is about, `{yesterday}` the one before, in ISO form or in that of a
format behind a colon, as in `{date:%Y/%m/%d}`. A brace that is meant is written twice. `${NAME}`
is a secret's name and stays.
"""

import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from tasks.engine.errors import UserError, nearest
from tasks.engine.secrets import redact

if TYPE_CHECKING:  # which checks its time zone here
    from tasks.engine.config import Config

DATED = ("source", "table", "query")

_DAYS_BEFORE = {"date": 0, "yesterday": 1}
_BRACES = re.compile(r"\$\{\w+\}|\{\{|\}\}|\{[^{}]*\}|[{}]")
# what strftime says of a day, and in every language alike
_FORMAT = re.compile(r"(?:[^%]*%[YymdjGVuU])+[^%]*")
_KNOWN = (
    "Known are {date} and {yesterday}, also in another form made of strftime's %Y %y %m %d %j %G "
    "%V %u %U, as in {date:%Y/%m/%d}. A brace that is meant is written twice: {{ or }}."
)


def timezone_name(name: str) -> str:
    """The name of a time zone as it is. Raises ValueError where there is none of that name."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"there is no time zone {name!r}.{nearest(name, available_timezones())} Names are "
            "those of the IANA database, as in Europe/Berlin; UTC without one"
        ) from None
    return name


def day_of(moment: datetime, timezone: str) -> date:
    """The day of an aware time by the clock of a time zone."""
    return moment.astimezone(ZoneInfo(timezone)).date()


def today(config: "Config") -> date:
    """Of now, by the clock of `data.timezone`."""
    return day_of(datetime.now(UTC), config.data.timezone)


def day_from(text: str) -> date:
    """Raises UserError where `text` is no day in ISO form."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"--date {text!r} is no day. Write it as in 2026-11-24.") from None


def dated(config: "Config", day: date) -> "Config":
    """The configuration with the dates of `day` in its source, table and query.

    Do it once: in the result a brace is a brace.

    Raises:
        UserError: a placeholder is not known.
    """
    found = {
        key: _filled(text, key, day)
        for key in DATED
        if (text := getattr(config.data, key)) is not None
    }
    return config.model_copy(update={"data": config.data.model_copy(update=found)})


def escaped(text: str) -> str:
    """The text as it has to be written for `dated` to leave it as it is."""
    parts = re.split(r"(\$\{\w+\})", text)
    parts[::2] = [part.replace("{", "{{").replace("}", "}}") for part in parts[::2]]
    return "".join(parts)


def has_dates(config: "Config") -> bool:
    """Whether another day names other data. Raises UserError as `dated` does."""
    return dated(config, date(2001, 2, 3)) != dated(config, date(2014, 10, 25))


def _filled(text: str, key: str, day: date) -> str:
    def value(found: re.Match[str]) -> str:
        mark = found[0]
        if mark in ("{{", "}}"):
            return mark[0]
        if mark.startswith("$"):
            return mark
        name, colon, form = mark.strip("{}").partition(":")
        if len(mark) == 1 or name not in _DAYS_BEFORE or (colon and not _FORMAT.fullmatch(form)):
            shown = redact(text) if key == "source" else text
            what = "a single" if len(mark) == 1 else "the placeholder"
            raise UserError(f"data.{key}={shown!r} holds {what} {mark}. {_KNOWN}")
        at = day - timedelta(days=_DAYS_BEFORE[name])
        return at.strftime(form) if colon else at.isoformat()

    return _BRACES.sub(value, text)

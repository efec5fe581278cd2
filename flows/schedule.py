"""When a schedule runs, by Prefect's own reckoning: what is shown is what will happen."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from tasks.engine.dates import timezone_name
from tasks.engine.errors import UserError

DAY = timedelta(days=1)
LOOK_AHEAD_DAYS = 366
MOST = 1000  # times that Prefect looks for at once


@dataclass(frozen=True)
class ClockChange:
    """A night on which clocks change, and what becomes of the runs of that night.

    `planned` are the local times that the schedule names and that day does not have or does not
    run at, `instead` the local times at which it runs in their place; naive.
    """

    night: datetime
    planned: tuple[datetime, ...]
    instead: tuple[datetime, ...]


def check_schedule(cron: str, timezone: str) -> None:
    """Raises UserError where `cron` is no schedule or `timezone` no time zone."""
    try:
        timezone_name(timezone)
    except ValueError as error:
        raise UserError(f"--timezone: {error}.") from None
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValueError:
        raise UserError(
            f"{cron!r} is no schedule (--cron). It takes five fields (minute, hour, day of the "
            "month, month, day of the week), as in '0 3 * * *' for every day at 03:00."
        ) from None
    try:
        next_times(cron, timezone, 1, datetime.now(UTC))
    except ValueError:
        raise UserError(
            f"{cron!r} (--cron) never comes: no month that it names has such a day."
        ) from None


def next_times(cron: str, timezone: str, count: int, start: datetime) -> list[datetime]:
    """The next `count` times from `start` (aware) on, in the schedule's zone."""
    return _times(cron, timezone, start, count=count)


def clock_changes(cron: str, timezone: str, start: datetime) -> list[ClockChange]:
    """The nights of the year after `start` on which runs are moved because clocks change."""
    zone = ZoneInfo(timezone)
    found = []
    for day in range(LOOK_AHEAD_DAYS):
        noon = (start.astimezone(zone) + day * DAY).replace(hour=12, minute=0, second=0)
        before, after = noon.replace(tzinfo=None), (noon + DAY).replace(tzinfo=None)
        if noon.utcoffset() == (noon + DAY).utcoffset():
            continue
        planned = set(_planned(cron, before, after))
        if len(planned) == MOST:
            return []  # where a run starts every minute no night makes a difference
        runs = _times(cron, timezone, noon.astimezone(UTC), end=(noon + DAY).astimezone(UTC))
        real = {run.replace(tzinfo=None) for run in runs}
        if missed := sorted(planned - real):
            instead = tuple(sorted(real - planned))
            found.append(ClockChange(after.replace(hour=0), tuple(missed), instead))
    return found


def told(changes: Sequence[ClockChange], timezone: str) -> list[str]:
    """A sentence for each night on which runs are moved or left out."""
    return [
        f"Clocks change in {timezone} on {change.night:%Y-%m-%d}: the run at "
        f"{_hours(change.planned)} "
        + (f"starts at {_hours(change.instead)} instead" if change.instead else "is left out")
        + ". Another hour, or --timezone UTC, has no such night."
        for change in changes
    ]


def _hours(times: Sequence[datetime]) -> str:
    return ", ".join(f"{time:%H:%M}" for time in times)


def _planned(cron: str, start: datetime, end: datetime) -> list[datetime]:
    """The wall-clock times that the schedule names: those of a zone without clock changes."""
    times = _times(cron, "UTC", start.replace(tzinfo=UTC), end=end.replace(tzinfo=UTC))
    return [time.replace(tzinfo=None) for time in times]


def _times(
    cron: str,
    timezone: str,
    start: datetime,
    *,
    count: int | None = None,
    end: datetime | None = None,
) -> list[datetime]:
    from prefect.server.schemas.schedules import CronSchedule

    zone = ZoneInfo(timezone)
    schedule = CronSchedule(cron=cron, timezone=timezone)
    times = asyncio.run(schedule.get_dates(count or MOST, start=start, end=end))
    return [time.astimezone(zone) for time in times]

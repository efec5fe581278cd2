"""When schedules run, on the nights when clocks change too."""

import sys
from datetime import UTC, datetime

import pytest

from flows.schedule import check_schedule, clock_changes, next_times, told
from tasks.engine.errors import UserError

SPRING, AUTUMN = datetime(2027, 3, 27, 12, tzinfo=UTC), datetime(2027, 10, 30, 12, tzinfo=UTC)
# What Prefect makes of a time that does not exist: below Python 3.13, where it reckons with another
# library, it is an hour early, from there on an hour late.
LEFT_OUT_UTC, LEFT_OUT_BERLIN = (
    ("00:30", "01:30") if sys.version_info < (3, 13) else ("01:30", "03:30")
)


@pytest.mark.parametrize(
    ("zone", "start", "expected"),
    [
        pytest.param("UTC", SPRING, ["03-28 02:30", "03-29 02:30"], id="UTC has no such night"),
        pytest.param(
            "Europe/Berlin",
            SPRING,
            [f"03-28 {LEFT_OUT_UTC}", "03-29 00:30"],
            id="an hour left out",
        ),
        pytest.param("Europe/Berlin", AUTUMN, ["10-31 00:30", "11-01 01:30"], id="an hour twice"),
    ],
)
def test_the_nights_when_clocks_change(zone: str, start: datetime, expected: list[str]) -> None:
    found = next_times("30 2 * * *", zone, 2, start)
    assert [f"{time.astimezone(UTC):%m-%d %H:%M}" for time in found] == expected
    assert all(str(time.tzinfo) == zone for time in found)


@pytest.mark.parametrize(
    ("cron", "zone", "expected"),
    [
        pytest.param(
            "30 2 * * *",
            "Europe/Berlin",
            [
                "Clocks change in Europe/Berlin on 2027-03-28: the run at 02:30 starts at "
                f"{LEFT_OUT_BERLIN} instead. Another hour, or --timezone UTC, has no such night."
            ],
            id="in the hour that is left out",
        ),
        pytest.param("30 2 * * *", "UTC", [], id="UTC"),
        pytest.param("0 3 * * *", "Europe/Berlin", [], id="another hour"),
        pytest.param("0 3 * * *", "Asia/Tokyo", [], id="a zone without"),
        pytest.param("30 2 * * 1", "Europe/Berlin", [], id="another day of the week"),
    ],
)
def test_moved_runs_are_told(cron: str, zone: str, expected: list[str]) -> None:
    assert told(clock_changes(cron, zone, datetime(2026, 12, 1, tzinfo=UTC)), zone) == expected


@pytest.mark.parametrize(
    ("cron", "zone", "message"),
    [
        pytest.param(
            "every night",
            "UTC",
            "'every night' is no schedule (--cron). It takes five fields (minute, hour, day of "
            "the month, month, day of the week), as in '0 3 * * *' for every day at 03:00.",
            id="no cron",
        ),
        pytest.param(
            "0 0 30 2 *",
            "UTC",
            "'0 0 30 2 *' (--cron) never comes: no month that it names has such a day.",
            id="no such day",
        ),
        pytest.param(
            "0 3 * * *",
            "Europe/Berln",
            "--timezone: there is no time zone 'Europe/Berln'. Did you mean 'Europe/Berlin'? "
            "Names are those of the IANA database, as in Europe/Berlin; UTC without one.",
            id="no zone",
        ),
        pytest.param(
            "0 3 * * *",
            "../etc/passwd",
            "--timezone: there is no time zone '../etc/passwd'. Names are those of the IANA "
            "database, as in Europe/Berlin; UTC without one.",
            id="a path as zone",
        ),
    ],
)
def test_refused(cron: str, zone: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_schedule(cron, zone)
    assert str(raised.value) == message


def test_a_run_every_minute_has_no_such_night() -> None:
    assert clock_changes("* * * * *", "Europe/Berlin", datetime(2026, 11, 1, tzinfo=UTC)) == []
    quarters = clock_changes("*/15 * * * *", "Europe/Berlin", datetime(2026, 3, 1, tzinfo=UTC))
    assert quarters[0].planned[0].hour == 2

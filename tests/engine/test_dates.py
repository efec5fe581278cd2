"""Dates in the names of sources."""

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from flows.init import write_config
from tasks.engine.config import Config
from tasks.engine.dates import dated, day_from, day_of, escaped, has_dates
from tasks.engine.errors import UserError
from tasks.engine.settings import load_config

DAY = date(2026, 11, 1)
KNOWN = (
    " Known are {date} and {yesterday}, also in another form made of strftime's %Y %y %m %d %j %G "
    "%V %u %U, as in {date:%Y/%m/%d}. A brace that is meant is written twice: {{ or }}."
)


def of(source: str, **more: str) -> Config:
    return Config.model_validate({"data": {"source": source, "target": "y", **more}})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("s3://bucket/{date}/", "s3://bucket/2026-11-01/"),
        ("sales/{date:%Y/%m/%d}.csv", "sales/2026/11/01.csv"),
        ("sales/{yesterday}*.csv", "sales/2026-10-31*.csv"),
        ("week {date:%G-W%V}", "week 2026-W44"),
        ("sales.csv", "sales.csv"),
        ("a{{b}}{{date}}.csv", "a{b}{date}.csv"),
        ("https://me:${TOKEN}@host/{date}", "https://me:${TOKEN}@host/2026-11-01"),
    ],
)
def test_filled_in(source: str, expected: str) -> None:
    assert dated(of(source), DAY).data.source == expected


def test_a_database_is_asked_for_the_day() -> None:
    query = "SELECT * FROM sales WHERE day = '{date}' AND kind <> '{{}}'"
    found = dated(of("sqlite:///a.db", query=query), DAY).data
    assert found.query == "SELECT * FROM sales WHERE day = '2026-11-01' AND kind <> '{}'"
    assert dated(of("sqlite:///a.db", table="sales_{date:%Y%m%d}"), DAY).data.table == (
        "sales_20261101"
    )


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        pytest.param(
            "s3://b/{day}/",
            {},
            "data.source='s3://b/{day}/' holds the placeholder {day}.",
            id="another name",
        ),
        pytest.param(
            "a/{date:YYYY}",
            {},
            "data.source='a/{date:YYYY}' holds the placeholder {date:YYYY}.",
            id="a format of others",
        ),
        pytest.param(
            "a/{date:%H}",
            {},
            "data.source='a/{date:%H}' holds the placeholder {date:%H}.",
            id="a day has no hours",
        ),
        pytest.param("a{b.csv", {}, "data.source='a{b.csv' holds a single {.", id="one brace"),
        pytest.param(
            "postgresql://me:secret@db/{now}",
            {},
            "data.source='postgresql://me:***@db/{now}' holds the placeholder {now}.",
            id="no secret is told",
        ),
        pytest.param(
            "sqlite:///a.db",
            {"query": "SELECT '{}'"},
            "data.query=\"SELECT '{}'\" holds the placeholder {}.",
            id="in a query",
        ),
    ],
)
def test_refused(source: str, more: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        dated(of(source, **more), DAY)
    assert str(raised.value) == message + KNOWN


def test_the_day_is_that_of_the_clock_meant() -> None:
    moment = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)
    assert day_of(moment, "UTC") == date(2026, 11, 24)
    assert day_of(moment, "Europe/Berlin") == date(2026, 11, 25)
    assert day_of(moment, "America/New_York") == date(2026, 11, 24)


def test_a_day_that_is_none() -> None:
    assert day_from("2026-11-24") == date(2026, 11, 24)
    with pytest.raises(UserError) as raised:
        day_from("24.11.2026")
    assert str(raised.value) == "--date '24.11.2026' is no day. Write it as in 2026-11-24."


def test_a_time_zone_that_is_none() -> None:
    with pytest.raises(UserError) as raised:
        load_config(overrides=["data.timezone=Europe/Berln"])
    assert str(raised.value) == (
        "The configuration is wrong: data.timezone: there is no time zone 'Europe/Berln'. Did you "
        "mean 'Europe/Berlin'? Names are those of the IANA database, as in Europe/Berlin; UTC "
        "without one."
    )


def test_whether_a_configuration_has_dates() -> None:
    assert has_dates(of("a/{date}")) and has_dates(of("a/{yesterday:%Y}"))
    assert not has_dates(of("a/{{date}}")) and not has_dates(of("a.csv"))


def test_init_writes_a_name_with_braces_so_that_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a{1}.csv").write_text("x,y\n" + "".join(f"{i},{i * 2.5}\n" for i in range(50)))
    write_config("a{1}.csv", "y")
    config = load_config("boostline.toml")
    assert config.data.source == escaped("a{1}.csv") == "a{{1}}.csv"
    assert dated(config, DAY).data.source == "a{1}.csv"

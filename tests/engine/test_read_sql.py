"""Databases: tables and queries as they are, and what can't be read is named."""

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tasks.engine.config import DataConfig
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tests.engine.tables import ingested, rows


@pytest.fixture
def database(tmp_path: Path) -> str:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.executescript(
        "CREATE TABLE sales (id INTEGER PRIMARY KEY, price NUMERIC(10, 2), day DATE, shop TEXT, "
        "mixed, qty REAL);"
    )
    connection.executemany(
        "INSERT INTO sales VALUES (?, ?, ?, ?, ?, ?)",
        [
            (3, 2.5, "2026-01-03", "b", 1, None),
            (1, 1.25, "2026-01-01", "a", 1, 1),
            (2, None, None, None, 2.5, 2.5),
        ],
    )
    connection.commit()
    connection.close()
    return f"sqlite:///{tmp_path}/shop.db"


def test_database_table(database: str, home: Home) -> None:
    dataset = ingested(database, home, table="sales")
    assert {c.name: c.kind for c in dataset.columns} == {
        "id": "integer",
        "price": "decimal",
        "day": "date",
        "shop": "string",
        "mixed": "float",
        "qty": "float",
    }
    found = rows(dataset)
    assert [row["id"] for row in found] == [1, 2, 3]
    assert found[0]["price"] == Decimal("1.25")
    assert found[2]["day"] == dt.date(2026, 1, 3)
    assert dataset.files[0].path == "sales"
    assert dataset.notes == ()
    assert dataset.digest is not None


def test_columns_that_were_texts_are_texts_again(database: str, home: Home, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("UPDATE sales SET shop = '2024-01-01 10:00'")
    connection.close()
    config = DataConfig(source=database, table="sales")
    for texts, kind in (((), "timestamp"), (("shop",), "string")):
        columns = ingest(config, home, texts=texts).columns
        assert {column.name: column.kind for column in columns}["shop"] == kind


def test_database_query(database: str, home: Home) -> None:
    query = "SELECT shop, price, day, ':x' AS c FROM sales WHERE id <> 2 ORDER BY id"
    dataset = ingested(database, home, query=query)
    assert rows(dataset) == [
        {"shop": "a", "price": 1.25, "day": dt.date(2026, 1, 1), "c": ":x"},
        {"shop": "b", "price": 2.5, "day": dt.date(2026, 1, 3), "c": ":x"},
    ]
    assert ingested(database, home, query="SELECT * FROM sales").notes == (
        "data.query has no ORDER BY: the database may return the rows in another order next time, "
        "and a row's place decides its side of the split.",
    )


def test_a_table_without_a_key_has_no_order(database: str, home: Home, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE VIEW dear AS SELECT * FROM sales")
    connection.close()
    assert ingested(database, home, table="dear").notes == (
        "The table 'dear' (data.table) has no primary key: the database may return the rows in "
        "another order next time, and a row's place decides its side of the split.",
    )


def test_database_is_read_anew_each_time(database: str, home: Home, tmp_path: Path) -> None:
    import sqlite3

    first = ingested(database, home, table="sales")
    assert ingested(database, home, table="sales") == first
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("UPDATE sales SET qty = 9")
    connection.close()
    assert ingested(database, home, table="sales").digest != first.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {},
            "{url} is a database: set data.table, or data.query to an SQL query.",
            id="neither table nor query",
        ),
        pytest.param(
            {"table": "sale"},
            "There is no table 'sale' (data.table) in {url}. Did you mean 'sales'? Its tables are: "
            "sales.",
            id="unknown table",
        ),
        pytest.param(
            {"query": "SELEC 1"},
            '{url}: data.query fails: near "SELEC": syntax error.',
            id="syntax error",
        ),
        pytest.param(
            {"query": "DELETE FROM sales"},
            "{url}: data.query fails: attempt to write a readonly database.",
            id="writes",
        ),
        pytest.param(
            {"query": "SELECT id, id FROM sales ORDER BY 1"},
            "The result of data.query: 2 columns are named 'id' (columns 1 and 2). Give each a "
            "name of its own.",
            id="duplicate names",
        ),
        pytest.param(
            {"query": "SELECT id FROM sales WHERE id > 9 ORDER BY 1"},
            "{url} has columns but no rows.",
            id="no rows",
        ),
        pytest.param(
            {"query": "SELECT id, CASE id WHEN 2 THEN 'x' ELSE 1 END AS m FROM sales ORDER BY 1"},
            "{url}: the column 'm' mixes types (int in row 1, str in row 2). Cast it in "
            "data.query.",
            id="mixed types",
        ),
    ],
)
def test_database_refused(options: dict[str, Any], message: str, database: str, home: Home) -> None:
    with pytest.raises(UserError) as refused:
        ingested(database, home, **options)
    assert str(refused.value) == message.replace("{url}", database)


def test_database_that_is_not_there(database: str, home: Home, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        ingested(database.replace("shop", "shp"), home, table="sales")
    assert str(refused.value) == (
        f"There is no database file '{tmp_path}/shp.db'. Did you mean 'shop.db'?"
    )
    assert not (tmp_path / "shp.db").exists()

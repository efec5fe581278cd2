"""The first look at a table, and the configuration that comes of it."""

import tomllib
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.init import write_config
from tasks.engine.config import Config, flatten
from tasks.engine.errors import UserError
from tasks.engine.home import Home
from tasks.engine.settings import load_config


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(str(tmp_path / "home"))


def table(tmp_path: Path, **columns: object) -> str:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param("housing.csv", "median_house_value", id="by-the-end-of-its-name"),
        pytest.param("diamonds.csv", "price", id="by-its-name"),
    ],
)
def test_real_tables_give_a_configuration_that_loads(
    shared_data: Path, tmp_path: Path, home: Home, name: str, target: str
) -> None:
    source, out = str(shared_data / name), str(tmp_path / "out.toml")
    written = write_config(source, None, out, home=home)
    assert (written.columns, written.target) == (10, target)
    assert load_config(out) == load_config(None, data=source, target=target)


def test_the_file_lists_the_columns_and_every_setting(
    shared_data: Path, tmp_path: Path, home: Home
) -> None:
    out = tmp_path / "out.toml"
    write_config(str(shared_data / "housing.csv"), None, str(out), home=home)
    lines = out.read_text().splitlines()
    assert lines[1].startswith("# 20,640 rows, 10 columns; seen in ")
    gaps = next(line for line in lines if "total_bedrooms" in line)
    assert " % " in gaps and gaps.endswith("129, 1106, 190")
    assert lines.count("# Here: guessed by its name, as --target was not given ('value').") == 1
    for key in flatten(Config()):
        name = key.split(".")[1]
        assert any(
            line.startswith((f"# {name} = ", f"# {name} is not", f"{name} = ")) for line in lines
        )
    assert max(map(len, lines)) <= 120


def test_what_is_commented_out_is_the_default(tmp_path: Path, home: Home) -> None:
    source = table(tmp_path, a=[1.5, 2.5, 3.5], y=[1.0, 2.0, 4.0])
    out = tmp_path / "out.toml"
    write_config(source, "y", str(out), home=home)
    active = [
        line.removeprefix("# ") if " = " in line and "is not set" not in line else line
        for line in out.read_text().splitlines()
    ]
    uncommented = tomllib.loads("\n".join(active))
    assert len(uncommented["boost"]) == len(Config().boost.model_dump(exclude_none=True))
    assert Config.model_validate(uncommented) == load_config(None, data=source, target="y")


def test_columns_that_name_the_row_are_excluded_and_others_are_pointed_out(
    tmp_path: Path, home: Home
) -> None:
    rows = 200
    source = table(
        tmp_path,
        row=list(range(rows)),
        customerId=[(i * 7919) % 100_003 for i in range(rows)],
        note=[f"text {i}" for i in range(rows)],
        tags=[[i] for i in range(rows)],
        grade=[i % 5 for i in range(rows)],
        weight=[1.0 + i % 2 for i in range(rows)],
        sold=[date(2025, 1, 1) + timedelta(days=i) for i in range(rows)],
        price=[float(i % 17) for i in range(rows)],
        last=[float(i % 13) for i in range(rows)],
    )
    out = tmp_path / "out.toml"
    written = write_config(source, None, str(out), home=home)
    config, lines = load_config(str(out)), out.read_text().splitlines()
    assert written.notes == (
        "price is the target: guessed by its name, as --target was not given ('price').",
        "row is excluded: it counts the rows.",
        "customerId is excluded: every row has a value of its own.",
        "note is excluded: every row has a value of its own.",
        "tags is excluded: list<element: int64> can't be a feature.",
    )
    assert config.data.exclude == ("row", "customerId", "note", "tags")
    assert (config.data.weight, config.split.kind, config.data.categories) == (None, "hash", ())
    assert '#   categories = ["grade"]' in lines
    assert '#   weight = "weight"' in lines
    assert lines[lines.index('#   kind = "time"') + 1] == '#   column = "sold"'


def test_the_second_coordinate_is_not_a_target(tmp_path: Path, home: Home) -> None:
    source = table(tmp_path, x=[1.0, 2.0], y=[1.0, 3.0], height=[5.0, 6.0])
    assert write_config(source, None, str(tmp_path / "o.toml"), home=home).target == "height"


def test_names_and_values_of_any_kind_survive(tmp_path: Path, home: Home) -> None:
    names = ['quo"ted', "new\nline", "back\\slash", "größe [m²] 😀", "tab\t\x7f\x1b"]
    columns = {name: [f"a{i % 2}\x00\n\x1b[31m" for i in range(40)] for name in names}
    source = table(tmp_path, **columns, **{'pri"ce\n\x7f': [float(i) for i in range(40)]})
    out = str(tmp_path / "out.toml")
    write_config(source, None, out, ["data.categories=[]", "track.model=houses"], home)
    config = load_config(out)
    assert config.data.target == 'pri"ce\n\x7f'
    assert config.track.model == "houses"


def test_settings_that_were_given_are_written(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a;b;y\n" + "".join(f"{i},5;u;{i}\n".replace(",", ".") for i in range(9)))
    out = str(tmp_path / "out.toml")
    written = write_config(str(file), "y", out, ["data.separator=;", "boost.max_depth=6"], home)
    assert written.columns == 3
    assert load_config(out).data.separator == ";"
    assert load_config(out).boost.max_depth == 6


def test_no_file_is_overwritten(tmp_path: Path, home: Home) -> None:
    out = tmp_path / "mine.toml"
    out.write_text("mine")
    with pytest.raises(UserError) as refusal:
        write_config("demo:regression", None, str(out), home=home)
    assert str(refusal.value) == (
        f"{str(out)!r} exists and is never overwritten. Name another file with --out."
    )
    assert out.read_text() == "mine"


def test_a_target_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path, home: Home) -> None:
    source = table(tmp_path, price=[1.0, 2.0], rooms=[1, 2])
    out = tmp_path / "out.toml"
    with pytest.raises(UserError) as refusal:
        write_config(source, "prise", str(out), home=home)
    assert str(refusal.value) == (
        "The target column 'prise' (--target) is not in the table. Did you mean 'price'? "
        "Its columns are: price, rooms."
    )
    assert not out.exists()


def test_a_table_without_a_number_has_no_target(tmp_path: Path, home: Home) -> None:
    source = table(tmp_path, a=["x", "y"], b=[1.0, 1.0])
    with pytest.raises(UserError) as refusal:
        write_config(source, None, str(tmp_path / "out.toml"), home=home)
    assert str(refusal.value) == (
        "No column could be a target: a target is numeric, and has more than one value. "
        "Name one with --target."
    )

"""Values and columns that a model can't be trained on, and those about which it is warned."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.engine.home import Home
from tests.bad_inputs.early import (
    ROWS,
    changed,
    columns,
    csv,
    parquet,
    r2_of_all_rows,
    refused,
    seen,
    trained,
)

FINITE = "features are finite numbers within ±3.4e+38. Make such values missing, or set their rows "
FAR = (
    "The target 'y' lies up to {far} from its mean, in {rows} training rows: the sum of such "
    "squares is beyond 3.4e+38, which XGBoost's 32-bit floats hold. Divide it by a constant in "
    "the source."
)


def one_row(why: str, value: str) -> str:
    return (
        f"1 of 60 rows can't be used (the target 'y' is {why}), more than data.max_rejected=0 "
        f"allows.\n- row 6 of t.parquet: the target 'y' is {why} (y={value}, a=3.418, c=y)\n"
        "All of them are in {home}/rejected/#. Mend the data, or set data.max_rejected to the "
        "share that may be left out."
    )


def odd_type(name: str, arrow: str) -> str:
    return (
        f"The column {name!r} is of the type {arrow}, which can't be a feature. Name the features "
        "in data.features, or leave it out by data.exclude."
    )


def weights(value: Any) -> dict[str, Any]:
    return columns(w=[1.0] * 5 + [value] + [1.0] * (ROWS - 6))


def weight_message(value: str) -> str:
    return (
        f"The weight column 'w' (data.weight) holds {value} in row 6 of t.parquet. Weights are "
        "finite numbers of 0 or more."
    )


def no_rows(side: str, rows: str) -> str:
    return (
        f"The split leaves no {side} rows: {rows} with split.kind=hash, split.valid=0.1, "
        "split.test=0.2. Give it more rows or other shares."
    )


def first(count: int) -> dict[str, Any]:
    return {name: values[:count] for name, values in columns().items()}


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        pytest.param(
            changed("a", 6, np.inf),
            {},
            f"The column 'a' holds inf in row 6 of t.parquet: {FINITE}aside with a rule such as "
            '"a < 1e30" and data.max_rejected.',
            id="infinite feature",
        ),
        pytest.param(
            changed("a", 6, -np.inf),
            {},
            f"The column 'a' holds -inf in row 6 of t.parquet: {FINITE}aside with a rule such as "
            '"a > -1e30" and data.max_rejected.',
            id="minus infinity",
        ),
        pytest.param(
            columns(**{"a b": [1e300] * ROWS}),
            {},
            f"The column 'a b' holds 1e+300 in row 1 of t.parquet: {FINITE}aside with a rule such "
            'as "`a b` < 1e30" and data.max_rejected.',
            id="1e300 feature",
        ),
        pytest.param(
            columns(k=[[1.0]] * ROWS), {}, odd_type("k", "list<element: double>"), id="lists"
        ),
        pytest.param(
            columns(k=[{"z": 1}] * ROWS), {}, odd_type("k", "struct<z: int64>"), id="structs"
        ),
        pytest.param(columns(k=[b"z"] * ROWS), {}, odd_type("k", "binary"), id="binary"),
        pytest.param(
            columns(k=[f"k{i}" for i in range(ROWS)]),
            {"data.max_categories": 10},
            "The column 'k' has more than 10 categories (data.max_categories). Leave it out with "
            "data.exclude if it names rows, or raise the limit.",
            id="too many categories",
        ),
        pytest.param(
            columns(),
            {"data.target": "z"},
            "The target column 'z' (data.target) is not in the table. Its columns are: a, c, y.",
            id="target missing from the table",
        ),
        pytest.param(
            columns(price=[1.0] * ROWS),
            {"data.target": "Prise"},
            "The target column 'Prise' (data.target) is not in the table. Did you mean 'price'? "
            "Its columns are: a, c, y, price.",
            id="target misspelt",
        ),
        pytest.param(
            changed("y", 6, None),
            {},
            one_row("missing", "missing"),
            id="target NaN",
        ),
        pytest.param(
            changed("y", 6, np.inf),
            {},
            one_row("infinite", "inf"),
            id="target infinite",
        ),
        pytest.param(
            changed("y", 6, 1e300),
            {},
            one_row("beyond ±3.4e+38", "1e+300"),
            id="target 1e300",
        ),
        pytest.param(
            columns(y=[str(value) for value in columns()["y"]]),
            {},
            "The target column 'y' (data.target) holds text, not numbers. Numbers that are written "
            "as text must be converted in the source. Columns with numbers are: a.",
            id="target as numeric text",
        ),
        pytest.param(
            columns(y=[value * 1e19 for value in columns()["y"]]),
            {},
            FAR.format(far="1e+20", rows=39),
            id="target too far spread",
        ),
        pytest.param(
            columns(y=[3e37 * (-1) ** i for i in range(ROWS)]),
            {},
            FAR.format(far="3.2e+37", rows=39),
            id="target near the end of 32-bit floats",
        ),
        pytest.param(first(1), {}, no_rows("test", "1 usable row"), id="one row"),
        pytest.param(first(2), {}, no_rows("test", "2 usable rows"), id="a split left empty"),
        pytest.param(
            columns(),
            {"data.exclude": ["a", "c"]},
            "No features are left: the table's columns are a, c, y; the target is 'y'. Correct "
            "data.features or data.exclude.",
            id="no features left",
        ),
        pytest.param(
            {"y": columns()["y"]},
            {},
            "No features are left: the table's columns are y; the target is 'y'. Correct "
            "data.features or data.exclude.",
            id="only the target",
        ),
        pytest.param(
            weights(-1.0), {"data.weight": "w"}, weight_message("-1.0"), id="negative weight"
        ),
        pytest.param(weights(None), {"data.weight": "w"}, weight_message("nan"), id="weight NaN"),
        pytest.param(
            weights(np.inf), {"data.weight": "w"}, weight_message("inf"), id="weight infinite"
        ),
        pytest.param(
            columns(w=[0.0] * ROWS),
            {"data.weight": "w"},
            "All weights of the training rows are 0 (data.weight='w').",
            id="all weights zero",
        ),
        pytest.param(
            columns(w=["1"] * ROWS),
            {"data.weight": "w"},
            "The weight column 'w' (data.weight) holds text, not numbers.",
            id="weights as text",
        ),
    ],
)
def test_refused(
    table: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path, home: Home
) -> None:
    source = parquet(tmp_path / "data", table)
    assert refused(source, home, settings) == message.replace("{home}", home.root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            {"y": "?"},
            "{file}, line 2: '?' in the column 'y', whose other values are numbers. If it means a "
            'missing value, set data.missing_values=["?"]. Name the column in data.categories if '
            "it is meant as text, or in data.exclude.",
            id="target question mark",
        ),
        pytest.param(
            {"a": "-"},
            "{file}, line 2: '-' in the column 'a', whose other values are numbers. If it means a "
            'missing value, set data.missing_values=["-"]. Name the column in data.categories if '
            "it is meant as text, or in data.exclude.",
            id="dash",
        ),
        pytest.param(
            {"a": "1e400"},
            f"The column 'a' holds inf in row 1 of t.csv: {FINITE}aside with a rule such as "
            '"a < 1e30" and data.max_rejected.',
            id="1e400 in CSV",
        ),
        pytest.param(
            {"y": "5,7"},
            "{file}, line 2: 4 fields where the header has 3; a separator within a field must be "
            "quoted. Correct the line or write the file again.",
            id="decimal comma",
        ),
    ],
)
def test_csv_cell(text: dict[str, str], message: str, tmp_path: Path, home: Home) -> None:
    file = csv(tmp_path / "data", columns(), **text)
    assert refused(file, home) == message.replace("{file}", str(file))


WIDE = "{file}: the column {name!r} holds integers beyond 2^53, which are rounded to the nearest "
LEAK = (
    "'k' has a correlation of {sign}1.000000 with the target: does it give the answer away? Leave "
    "it out with data.exclude if so."
)


@pytest.mark.parametrize(
    ("table", "settings", "notes"),
    [
        pytest.param(
            columns(k=[7.0] * ROWS),
            {},
            ["'k' is constant in the training rows."],
            id="constant column",
        ),
        pytest.param(
            columns(k=["z"] * ROWS),
            {},
            ["'k' is constant in the training rows."],
            id="one category",
        ),
        pytest.param(
            columns(k=pa.nulls(ROWS, pa.float64()), t=pa.nulls(ROWS, pa.string())),
            {},
            [
                "'k' has no values at all and can't help the model.",
                "'t' has no values at all and can't help the model.",
            ],
            id="all-missing column",
        ),
        pytest.param(
            columns(y=[3.0] * ROWS),
            {},
            ["The target 'y' is constant: its R² is undefined."],
            id="target constant",
        ),
        pytest.param(
            columns(y=[value * 1e-20 for value in columns()["y"]]),
            {},
            [
                "The target 'y' varies so little (squares that add up to 1e-37) that hardly a "
                "split gains the 1e-06 that XGBoost asks of it: multiply it by a constant in the "
                "source."
            ],
            id="target varies too little",
        ),
        pytest.param(
            columns(k=columns()["y"]), {}, [LEAK.format(sign="")], id="feature equal to the target"
        ),
        pytest.param(
            columns(k=[1 - 3 * value for value in columns()["y"]]),
            {},
            [LEAK.format(sign="-")],
            id="feature mirrors the target",
        ),
        pytest.param(
            columns(k=[2**53 + 2 * i * i + 1 for i in range(ROWS)]),
            {},
            [WIDE.replace("{name!r}", "'k'") + "64-bit float."],
            id="integers beyond 2^53",
        ),
        pytest.param(
            columns(y=[2**53 + 2 * i * i + 1 for i in range(ROWS)]),
            {},
            [WIDE.replace("{name!r}", "'y'") + "64-bit float."],
            id="labels beyond 2^53",
        ),
        pytest.param(
            changed("y", 6, None),
            {"data.max_rejected": 0.02},
            ["1 row was set aside: the target 'y' is missing."],
            id="target set aside within the share",
        ),
        pytest.param(
            columns() | {"y": [*columns()["y"][:58], np.inf, 1e300]},
            {"data.max_rejected": 0.04},
            [
                "1 row was set aside: the target 'y' is beyond ±3.4e+38.",
                "1 row was set aside: the target 'y' is infinite.",
            ],
            id="infinite target set aside",
        ),
    ],
)
def test_warned_and_trained(
    table: dict[str, Any],
    settings: dict[str, Any],
    notes: list[str],
    tmp_path: Path,
    home: Home,
) -> None:
    source = parquet(tmp_path / "data", table)
    found = seen(source, home, settings)
    assert list(found.notes) == [note.replace("{file}", str(source)) for note in notes]
    fits = r2_of_all_rows(found, trained(found)) if table["y"] != [3.0] * ROWS else 1.0
    assert fits > 0.5 or "'y'" in notes[0]

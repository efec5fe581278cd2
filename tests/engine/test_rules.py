import datetime as dt

import numpy as np
import pytest

from tasks.engine.errors import UserError
from tasks.engine.rules import parse_rule

VALUES = {
    "price": np.array([1.0, 0.0, -1.0, np.nan]),
    "low": np.array([1.0, 2.0, 3.0, 4.0]),
    "state": np.array(["CA", "NY", None, "TX"], dtype=object),
    "sold": np.array([0.0, 86_400.0, np.nan, 172_800.0]),
    "odd name": np.array([1.0, 2.0, 3.0, 4.0]),
}


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        pytest.param("price > 0", [False, True, True, False], id="missing-fulfils"),
        pytest.param("not price > 0", [True, False, False, False], id="not-keeps-missing-unknown"),
        pytest.param("price > 0 or low >= 3", [False, True, False, False], id="or"),
        pytest.param("price > 0 and low < 3", [False, True, True, True], id="and"),
        pytest.param("1 < low <= 3", [True, False, False, True], id="chained"),
        pytest.param("state in ['CA', 'NY']", [False, False, False, True], id="in"),
        pytest.param("state not in ('CA',)", [True, False, False, False], id="not-in"),
        pytest.param("present(price)", [False, False, False, True], id="present"),
        pytest.param("price + 2 * low > 3", [True, False, False, False], id="arithmetic"),
        pytest.param("low % 2 == 0", [True, False, True, False], id="modulo"),
        pytest.param("sold >= '1970-01-02'", [True, False, False, False], id="time"),
        pytest.param("`odd name` < 4", [False, False, False, True], id="backticks"),
        pytest.param("low / (low - 1) > 0", [False, False, False, False], id="division-by-zero"),
        pytest.param("-low < -1", [True, False, False, False], id="minus"),
    ],
)
def test_a_rule_is_broken_only_where_it_is_false(rule: str, broken: list[bool]) -> None:
    parsed = parse_rule(rule, VALUES)
    assert parsed.broken({name: VALUES[name] for name in parsed.columns}).tolist() == broken


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        pytest.param("price >", "it does not read as an expression", id="syntax"),
        pytest.param("price", "it compares nothing", id="no-comparison"),
        pytest.param("price is 3", "`is` is not an operator of rules", id="is"),
        pytest.param(
            "__import__('os').system('x') > 0",
            "\"__import__('os').system('x')\" is not part of the language",
            id="call",
        ),
        pytest.param("price.real > 0", "'price.real' is not part of the language", id="attribute"),
    ],
)
def test_what_is_no_rule_is_refused(rule: str, reason: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_rule(rule, VALUES)
    assert str(refused.value) == (
        f"The rule {rule!r} (data.rules) can't be used: {reason}. Rules are comparisons of "
        'columns, as in "price > 0", "low <= high", "state in [\'CA\', \'NY\']" or '
        '"present(price)"; put odd names in backticks.'
    )


def test_an_unknown_column_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError) as refused:
        parse_rule("prise > 0", VALUES)
    assert str(refused.value) == (
        "The rule's column 'prise' (data.rules, 'prise > 0') is not in the table. "
        "Did you mean 'price'? Its columns are: price, low, state, sold, odd name."
    )


@pytest.mark.parametrize("text", ["high", "2134", "today", "now", "5", "2024-01", "2024-02-30"])
def test_a_text_meets_a_number(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_rule(f"low > '{text}'", VALUES).broken({"low": VALUES["low"]})
    assert str(refused.value) == (
        f"The rule \"low > '{text}'\" (data.rules) compares the text '{text}' with a number. A "
        "date or a time is written as '2026-01-31' or '2026-01-31 09:30'."
    )


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31 09:30",
        "2026-01-31T09:30:00",
        "2026-01-31 10:30:00.000+01:00",
        "2026-01-31T09:30Z",
        "2026-01-31 08:30 -0100",
    ],
)
def test_a_time_is_written_as_iso_8601_has_it(text: str) -> None:
    at = dt.datetime(2026, 1, 31, 9, 30, tzinfo=dt.UTC).timestamp()
    broken = parse_rule(f"sold == '{text}'", VALUES).broken({"sold": np.array([at, at + 1])})
    assert broken.tolist() == [False, True]

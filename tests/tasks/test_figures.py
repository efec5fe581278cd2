"""Numbers as a person reads them."""

import pytest

from tasks.figures import compact, rows_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9_999, "9999"),
        (20_640, "20.6k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (999_499_999, "999M"),
        (999_500_000, "1G"),
        (12.345, "12.3"),
    ],
)
def test_three_digits_and_a_letter(value: float, text: str) -> None:
    assert compact(value) == text


def test_rows() -> None:
    assert [rows_of(rows) for rows in (1, 1_000, 16_512, 999_900)] == [
        "1 row",
        "1,000 rows",
        "16.5k rows",
        "1M rows",
    ]

import datetime as dt
import decimal
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xgboost as xgb
from sklearn.preprocessing import StandardScaler

from tasks.engine.predictions import texts_of
from tasks.engine.rows import category_text
from tasks.engine.scoring import (
    BOOSTER_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    Column,
    Encoder,
    Scorer,
    TamperedModelError,
    numeric_values,
)

NAN = math.nan
UTC = dt.UTC


def arrow(values: list, type_: pa.DataType | None = None) -> pd.Series:
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values, type=type_)))


def encoded(series: pd.Series, **column) -> list[float]:
    matrix = Encoder((Column("x", **column),)).encode(series.to_frame("x"))
    assert matrix.dtype == np.float32 and matrix.flags.c_contiguous
    return matrix[:, 0].tolist()


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(pd.Series([3.0, NAN, 1.0]), id="float64"),
        pytest.param(pd.Series([3.0, NAN, 1.0], dtype="float32"), id="float32"),
        pytest.param(pd.Series([3, None, 1], dtype="Int64"), id="Int64"),
        pytest.param(pd.Series([3, None, 1], dtype="UInt8"), id="UInt8"),
        pytest.param(pd.Series([3.0, None, 1.0], dtype="Float64"), id="Float64"),
        pytest.param(pd.Series([3, None, 1], dtype=object), id="object"),
        pytest.param(pd.Series([3, pd.NA, decimal.Decimal(1)], dtype=object), id="object-mixed"),
        pytest.param(pd.Series([3, None, 1]).astype("category"), id="category"),
        pytest.param(arrow([3, None, 1]), id="arrow-int64"),
        pytest.param(arrow([3, None, 1], pa.float32()), id="arrow-float32"),
    ],
)
def test_numbers_of_every_type(series: pd.Series) -> None:
    np.testing.assert_array_equal(
        encoded(series, kind="number", center=1.0, scale=2.0), [1.0, NAN, 0.0]
    )


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(pd.Series([True, None, False], dtype="boolean"), id="boolean"),
        pytest.param(pd.Series([True, None, False], dtype=object), id="object"),
        pytest.param(pd.Series([1.0, NAN, 0.0]), id="float64"),
        pytest.param(arrow([True, None, False]), id="arrow"),
    ],
)
def test_booleans_of_every_type(series: pd.Series) -> None:
    np.testing.assert_array_equal(encoded(series, kind="bool"), [1.0, NAN, 0.0])
    assert encoded(pd.Series([True, False]), kind="bool") == [1.0, 0.0]


NAIVE = [dt.datetime(2024, 3, 31, 1, 30, 0, 123000), None]
SECONDS = [1711848600.123, NAN]


@pytest.mark.parametrize(
    "series",
    [
        *[
            pytest.param(pd.Series(NAIVE).astype(f"datetime64[{unit}]"), id=unit)
            for unit in ("ms", "us", "ns")
        ],
        pytest.param(pd.Series(NAIVE, dtype=object), id="object"),
        pytest.param(
            pd.Series(NAIVE).dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin"), id="zoned"
        ),
        pytest.param(
            pd.Series(
                [
                    dt.datetime(2024, 3, 31, 3, 30, 0, 123000, dt.timezone(dt.timedelta(hours=2))),
                    None,
                ],
                dtype=object,
            ),
            id="object-zoned",
        ),
        pytest.param(arrow(NAIVE, pa.timestamp("ns")), id="arrow"),
        pytest.param(
            arrow(
                [dt.datetime(2024, 3, 31, 1, 30, 0, 123000, UTC), None],
                pa.timestamp("ms", "Asia/Tokyo"),
            ),
            id="arrow-zoned",
        ),
        pytest.param(pd.Series(["2024-03-31T01:30:00.123", None]), id="text"),
        pytest.param(pd.Series(["2024-03-31T03:30:00.123+02:00", None]), id="text-zoned"),
        pytest.param(arrow(["2024-03-31 01:30:00.123Z", None]), id="arrow-text"),
    ],
)
def test_times_of_every_type_are_seconds_since_epoch(series: pd.Series) -> None:
    np.testing.assert_array_equal(numeric_values(series, "time"), SECONDS)


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(pd.Series([dt.date(9999, 12, 31), None], dtype=object), id="object"),
        pytest.param(arrow([dt.date(9999, 12, 31), None]), id="date32"),
        pytest.param(arrow([dt.date(9999, 12, 31), None], pa.date64()), id="date64"),
        pytest.param(pd.Series(["9999-12-31", None]), id="text"),
        pytest.param(pd.Series(["9999-12-31", None], dtype="category"), id="category"),
    ],
)
def test_dates_of_every_type(series: pd.Series) -> None:
    np.testing.assert_array_equal(numeric_values(series, "time"), [253402214400.0, NAN])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(
            ["1970-01-01T00:00:01", "1970-01-01T02:00:02+02:00", "1969-12-31T23:00:03-01:00"],
            id="text",
        ),
        pytest.param(
            [
                pd.Timestamp("1970-01-01 00:00:01"),
                pd.Timestamp("1970-01-01 02:00:02+02:00"),
                pd.Timestamp("1969-12-31 23:00:03-01:00"),
            ],
            id="object",
        ),
    ],
)
def test_times_of_several_zones_and_of_none_meet_in_utc(values: list) -> None:
    assert numeric_values(pd.Series(values, dtype=object), "time").tolist() == [1.0, 2.0, 3.0]


def test_times_before_1970_and_nanoseconds_are_exact() -> None:
    ticks = pd.Series(np.array([-1_500_000_001, 1_700_000_000_123_456_789], "datetime64[ns]"))
    assert numeric_values(ticks, "time").tolist() == [-1.500000001, 1700000000.123456789]


@pytest.mark.parametrize(
    "series",
    [
        *[
            pytest.param(
                pd.Series([dt.timedelta(seconds=1.5), None]).astype(f"m8[{unit}]"), id=unit
            )
            for unit in ("ms", "us", "ns")
        ],
        pytest.param(pd.Series([dt.timedelta(seconds=1.5), None], dtype=object), id="object"),
        pytest.param(arrow([dt.timedelta(seconds=1.5), None], pa.duration("ms")), id="arrow"),
        pytest.param(pd.Series(["P0DT0H0M1.5S", None]), id="text"),
        pytest.param(pd.Series([1.5, None]), id="seconds"),
    ],
)
def test_durations_of_every_type_are_seconds(series: pd.Series) -> None:
    np.testing.assert_array_equal(numeric_values(series, "duration"), [1.5, NAN])


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(pd.Series([decimal.Decimal("0.3"), None], dtype=object), id="object"),
        pytest.param(arrow([decimal.Decimal("0.3"), None], pa.decimal128(38, 20)), id="arrow"),
        pytest.param(pd.Series(["0.3", None]), id="text"),
        pytest.param(pd.Series([0.3, None]), id="float64"),
    ],
)
def test_decimals_of_every_type(series: pd.Series) -> None:
    np.testing.assert_array_equal(numeric_values(series, "decimal"), [0.3, NAN])


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(pd.Series(["b", None, "a", "zzz"]), id="str"),
        pytest.param(pd.Series(["b", None, "a", "zzz"], dtype=object), id="object"),
        pytest.param(pd.Series(["b", NAN, "a", "zzz"], dtype="category"), id="category"),
        pytest.param(pd.Series(["b", None, "a", "zzz"], dtype="string"), id="string"),
        pytest.param(arrow(["b", None, "a", "zzz"]), id="arrow"),
        pytest.param(arrow(["b", None, "a", "zzz"], pa.large_string()), id="arrow-large"),
        pytest.param(
            pd.Series(
                pd.arrays.ArrowExtensionArray(pa.array(["b", None, "a", "zzz"]).dictionary_encode())
            ),
            id="arrow-dictionary",
        ),
    ],
)
def test_categories_of_every_type(series: pd.Series) -> None:
    np.testing.assert_array_equal(
        encoded(series, kind="category", categories=("a", "b", "c")), [1.0, NAN, 0.0, NAN]
    )
    encoder = Encoder((Column("x", "category", categories=("a", "b", "c")),))
    assert encoder.unseen_counts(series.to_frame("x")) == {"x": 1}


@pytest.mark.parametrize(
    ("series", "texts"),
    [
        pytest.param(pd.Series([10, 2]), ["10", "2"], id="int"),
        pytest.param(pd.Series([10, NAN]), ["10", None], id="int-turned-float"),
        pytest.param(pd.Series([10, None], dtype="Int64"), ["10", None], id="Int64"),
        pytest.param(pd.Series([10, 2], dtype="category"), ["10", "2"], id="category-of-int"),
        pytest.param(pd.Series([0.1, 2.5], dtype="float32"), ["0.1", "2.5"], id="float32"),
        pytest.param(arrow([10, None]), ["10", None], id="arrow"),
        pytest.param(pd.Series([True, False]), ["true", "false"], id="bool"),
        pytest.param(
            pd.Series([decimal.Decimal("10.50"), decimal.Decimal("1E+1")]),
            ["10.5", "10"],
            id="decimal",
        ),
        pytest.param(pd.Series([dt.date(2024, 1, 2)]), ["2024-01-02"], id="date"),
        pytest.param(pd.Series(["", " a"]), ["", " a"], id="text-as-it-is"),
    ],
)
def test_categories_that_are_not_text_have_one_canonical_text(series, texts) -> None:
    assert category_text(series).tolist() == texts


@pytest.mark.parametrize(
    ("categories", "texts"),
    [
        (["2024-01-02", "2024-01-03T10:00:00"], ["2024-01-02T00:00:00", "2024-01-03T10:00:00"]),
        (["2024-01-02", "2024-01-02T00:00:00"], ["2024-01-02", "2024-01-02T00:00:00"]),
        (["2024-01-01T00:00:00", "2024-01-02T00:00:00"], [dt.date(2024, 1, 1), "2024-01-02"]),
        (["false", "true"], ["FALSE", "True"]),
    ],
    ids=["first-moment", "both-were-there", "of-an-older-model", "booleans"],
)
def test_a_category_has_more_than_one_text(categories: list[str], texts: list[object]) -> None:
    encoder = Encoder((Column("a", "category", categories=tuple(categories)),))
    frame = pd.DataFrame({"a": [*texts, "else"]}, dtype=object)
    assert encoder.encode(frame)[:, 0].tolist() == pytest.approx([0, 1, np.nan], nan_ok=True)
    assert encoder.unseen_counts(frame) == {"a": 1}


def test_columns_are_taken_by_name() -> None:
    encoder = Encoder((Column("a", "number"), Column("b", "number")))
    frame = pd.DataFrame({"b": [2.0], "extra": ["?"], "a": [1.0]})
    assert encoder.encode(frame).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        pytest.param(
            pd.DataFrame({"Carat": [1.0], "cut": ["Ideal"]}),
            "the table lacks columns: 'carat' (nearest: 'Carat'); it has 'Carat', 'cut'",
            id="missing",
        ),
        pytest.param(
            pd.DataFrame([[1.0, 2.0]], columns=["carat", "carat"]),
            "columns named more than once in the table: ['carat']",
            id="twice",
        ),
        pytest.param(
            pd.DataFrame({"carat": ["big"]}, dtype=object),
            "column 'carat' (type object) does not hold number values: found 'big'",
            id="text",
        ),
        pytest.param(
            pd.DataFrame({"carat": [0.5, math.inf]}),
            "column 'carat' has 1 infinite or too large values, the first in row 1: inf; "
            "leave them out or make them missing",
            id="infinite",
        ),
        pytest.param(
            pd.DataFrame({"carat": [1e300]}),
            "column 'carat' has 1 infinite or too large values, the first in row 0: 1e+300; "
            "leave them out or make them missing",
            id="too-large",
        ),
        pytest.param(
            pd.DataFrame({"carat": pd.to_datetime(["2024-01-01"])}),
            "column 'carat' (type datetime64[us]) does not hold number values: "
            "found Timestamp('2024-01-01 00:00:00')",
            id="time",
        ),
    ],
)
def test_what_can_not_be_encoded_is_named(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Encoder((Column("carat", "number"),)).encode(frame)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        pytest.param("time", [1.7e9], id="numbers-as-time"),
        pytest.param("time", ["tomorrow"], id="text-as-time"),
        pytest.param("bool", [2], id="two-as-bool"),
        pytest.param("decimal", ["1,5"], id="text-as-decimal"),
        pytest.param("duration", ["long"], id="text-as-duration"),
    ],
)
def test_values_of_another_kind_are_refused(kind, values) -> None:
    with pytest.raises(ValueError, match=rf"^column 'x' .* does not hold {kind} values: "):
        numeric_values(pd.Series(values, name="x"), kind)


def test_standardization_is_scikit_learns() -> None:
    values = np.random.default_rng(0).normal(1.7e9, 9.0, size=(500, 3))
    scaler = StandardScaler().fit(values)
    columns = [Column(f"c{i}", "number", scaler.mean_[i], scaler.scale_[i]) for i in range(3)]
    frame = pd.DataFrame(values, columns=["c0", "c1", "c2"])
    expected = scaler.transform(values).astype(np.float32)
    np.testing.assert_array_equal(Encoder(tuple(columns)).encode(frame), expected)


def test_an_encoder_survives_json() -> None:
    encoder = Encoder(
        (
            Column("ä[<\n", "number", 0.1 + 0.2, 1e-300),
            Column("t", "time", 1.7e9, 3.0),
            Column("c", "category", categories=("", "a", "é")),
        )
    )
    assert Encoder.from_json(encoder.to_json()) == encoder


def scorer(booster: str = "gbtree") -> tuple[Scorer, pd.DataFrame]:
    draw = np.random.default_rng(1)
    frame = pd.DataFrame({"x": draw.normal(5, 2, 400), "cut": draw.choice(["a", "b", "c"], 400)})
    frame.loc[::7, "x"] = NAN
    encoder = Encoder(
        (
            Column("x", "number", 5.0, 2.0),
            Column("cut", "category", categories=("a", "b", "c")),
        )
    )
    target = draw.normal(size=400) + frame["x"].fillna(0) + (frame["cut"] == "b")
    matrix = xgb.DMatrix(
        encoder.encode(frame),
        target,
        feature_names=[f"f{i}" for i in range(2)],
        feature_types=encoder.feature_types,
        enable_categorical=True,
    )
    trained = xgb.train(
        {"booster": booster, "max_depth": 3, "base_score": 0, "nthread": 1, "verbosity": 0},
        matrix,
        5,
    )
    return Scorer(encoder, trained, 1e9, threads=1), frame


@pytest.mark.parametrize("booster", ["gbtree", "dart"])
def test_a_prediction_is_the_mean_plus_the_margin_in_64_bits(booster: str) -> None:
    model, frame = scorer(booster)
    matrix = xgb.DMatrix(
        model.encoder.encode(frame),
        feature_names=model.booster.feature_names,
        feature_types=model.encoder.feature_types,
        enable_categorical=True,
    )
    margin = model.booster.predict(matrix, output_margin=True)
    predictions = model.predict(frame)
    assert predictions.dtype == np.float64
    np.testing.assert_array_equal(predictions, 1e9 + margin.astype(np.float64))
    parts = [model.predict(frame.iloc[start : start + 1]) for start in range(0, 400, 57)]
    np.testing.assert_array_equal(np.concatenate(parts), predictions[::57])
    assert model.predict(frame.iloc[:0]).shape == (0,)


def test_a_saved_scorer_predicts_the_same_bytes(tmp_path: Path) -> None:
    model, frame = scorer()
    digests = model.save(tmp_path)
    again = Scorer.load(tmp_path, manifest_sha256=digests[MANIFEST_FILE], threads=2)
    assert again.predict(frame).tobytes() == model.predict(frame).tobytes()
    assert again.encoder == model.encoder
    assert Scorer.load(tmp_path).save(tmp_path / "again") == digests


@pytest.mark.parametrize("name", [BOOSTER_FILE, ENCODER_FILE, MANIFEST_FILE])
def test_a_model_with_one_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    digests = scorer()[0].save(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    flip = random.Random(0)
    for _ in range(25):
        place, bit = flip.randrange(len(content)), 1 << flip.randrange(8)
        content[place] ^= bit
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TamperedModelError, match=name):
            Scorer.load(tmp_path, manifest_sha256=digests[MANIFEST_FILE])
        content[place] ^= bit


def test_a_model_that_lacks_a_file_or_says_so_is_refused(tmp_path: Path) -> None:
    scorer()[0].save(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({"sha256": {}}))
    with pytest.raises(TamperedModelError, match=r"booster\.ubj is not the file that was saved"):
        Scorer.load(tmp_path)
    (tmp_path / BOOSTER_FILE).unlink()
    with pytest.raises(TamperedModelError, match=r"lacks booster\.ubj"):
        Scorer.load(tmp_path)


@pytest.mark.parametrize("of_texts", [True, False, None])
def test_whether_a_category_held_texts_is_remembered(of_texts: bool | None) -> None:
    columns = (
        Column("number", "number"),
        Column("plain", "category", categories=("1", "2.5"), of_texts=of_texts),
        Column("long", "category", categories=("9300000000000000001",), of_texts=of_texts),
        Column("mixed", "category", categories=("01", "2"), of_texts=of_texts),
    )
    encoder = Encoder(columns)
    again = Encoder.from_json(encoder.to_json())
    assert again == encoder
    assert ("of_texts" in encoder.to_json()) is (of_texts is not None)
    # a CSV's numbers have 63 bits: of an integer with more it makes a text
    texts = {True: ("plain", "long", "mixed"), False: ("long",), None: ("long", "mixed")}
    assert texts_of(again) == texts[of_texts]


def test_a_long_whole_number_among_others_makes_no_texts() -> None:
    reals = Column("reals", "category", categories=("2.5", "9300000000000000001"), of_texts=False)
    assert texts_of(Encoder((reals,))) == ()

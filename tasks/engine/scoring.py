"""Raw columns to predictions: the one implementation, for workers and for served models.

This file imports only the standard library, NumPy, pandas and XGBoost, and nothing of this
project: its text is copied as it stands into every recorded model, so that a served model and the
run that trained it compute the same numbers by the same code.
"""

import decimal
import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

if TYPE_CHECKING:  # who only refuses a table does without
    import xgboost as xgb

Kind = Literal["number", "bool", "category", "time", "duration", "decimal"]
KINDS: tuple[Kind, ...] = get_args(Kind)

BOOSTER_FILE = "booster.ubj"
ENCODER_FILE = "encoder.json"
MANIFEST_FILE = "manifest.json"

_DAY, _MIDNIGHT = re.compile(r"\d{4}-\d\d-\d\d"), "T00:00:00"
_BOOLEANS = ("false", "true")
_TICKS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class TamperedModelError(ValueError):
    """The files of a stored model are not the files that were stored."""


class UnscorableValueError(ValueError):
    """A value is infinite as a feature; `row` counts from 0 among those that were given."""

    column, value, row = "", math.nan, 0


@dataclass(frozen=True)
class Column:
    """How one raw column becomes one feature.

    Numeric kinds become `(x - center) / scale` in float64, then float32. A category becomes its
    place in `categories`, which is sorted by code point. `of_texts` says whether it held texts, so
    that a file that leaves types open is read alike; None where that is not known.
    """

    name: str
    kind: Kind
    center: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] | None = None
    of_texts: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"column {self.name!r} has kind {self.kind!r}; known: {list(KINDS)}")
        if not (math.isfinite(self.center) and math.isfinite(self.scale) and self.scale != 0):
            scaling = f"center {self.center} and scale {self.scale}"
            raise ValueError(f"column {self.name!r}: {scaling} must be finite, the latter not zero")
        if (self.kind == "category") != (self.categories is not None):
            raise ValueError(f"column {self.name!r}: exactly the categories have a dictionary")
        if self.categories is not None:
            object.__setattr__(self, "categories", tuple(self.categories))
            if list(self.categories) != sorted(set(self.categories)):
                raise ValueError(f"column {self.name!r}: categories must be sorted and distinct")

    def stored(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        fields = asdict(self)
        if self.of_texts is None:
            del fields["of_texts"]
        return fields

    @cached_property
    def codes(self) -> Mapping[str, int]:
        """The place of each category in the dictionary, also by texts that mean the same."""
        found = {text: code for code, text in enumerate(self.categories or ())}
        for text, code in list(found.items()):
            # the shorter is canonical; clients send, and models of before have, the longer
            if _DAY.fullmatch(text):
                found.setdefault(text + _MIDNIGHT, code)
            elif text.endswith(_MIDNIGHT):
                found.setdefault(text.removesuffix(_MIDNIGHT), code)
            elif text in _BOOLEANS:  # as CSV spells them, where one odd value makes them texts
                found.setdefault(text.capitalize(), code)
                found.setdefault(text.upper(), code)
        return found


@dataclass(frozen=True)
class Encoder:
    """The features of a model, in the order in which its booster knows them."""

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if twice := _repeated(self.names):
            raise ValueError(f"columns named more than once: {twice}")

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def feature_types(self) -> list[str]:
        """XGBoost's type of each feature: `c` for categories, `q` for all others."""
        return ["c" if column.kind == "category" else "q" for column in self.columns]

    def to_json(self) -> str:
        return json.dumps([column.stored() for column in self.columns], ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Encoder":
        return cls(tuple(Column(**column) for column in json.loads(text)))

    def select(self, frame: pd.DataFrame) -> list[pd.Series]:
        """The encoder's columns of `frame`, by name and in order; other columns are ignored.

        Raises:
            ValueError: columns are missing, or a needed one is there more than once.
        """
        there = [str(label) for label in frame.columns]
        places = {name: place for place, name in enumerate(there)}
        if missing := [name for name in self.names if name not in places]:
            raise ValueError(_missing_columns(missing, list(places)))
        if twice := set(self.names).intersection(_repeated(there)):
            raise ValueError(f"columns named more than once in the table: {sorted(twice)}")
        columns = [column for _, column in frame.items()]  # half the time of `iloc` for each
        return [columns[places[name]] for name in self.names]

    def encode(self, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Features of the rows of `frame`: float32, (rows, columns), column by column in memory;
        NaN where a value is missing or a category unseen.

        Args:
            frame: raw columns; any order, further columns are ignored. NumPy, nullable, Arrow,
                string, categorical and object types are accepted.

        Raises:
            ValueError: a column is missing, or holds values that are not of its kind, or values
                that are infinite in 32 bits.
        """
        # row by row, every value of a column would touch another line of the processor's cache
        shape = (len(self.columns), len(frame))
        features = np.empty(shape, dtype=np.float32)
        for place, series in enumerate(self.select(frame)):
            feature = _feature(self.columns[place], series)
            if place == 0:  # made where the frame is: in the host's memory or a GPU's
                features = np.empty(shape, dtype=np.float32, like=feature)
            features[place] = feature
        return features.T

    def unseen_counts(self, frame: pd.DataFrame) -> dict[str, int]:
        """Rows by category column whose value is there but not in the dictionary."""
        counts = {}
        for column, series in zip(self.columns, self.select(frame), strict=True):
            if column.kind == "category":
                codes, texts = category_levels(series)
                seen = [text in column.codes for text in texts] + [True]
                known = np.array(seen, dtype=bool, like=codes)
                counts[column.name] = int(np.count_nonzero(~known[codes]))
        return counts


class Scorer:
    """An encoder, a booster and the mean of the training target: a whole model.

    The scorer owns the booster that it is given, and sets its device and threads.

    Args:
        encoder: the features.
        booster: of trees, trained on the encoder's features, with base score 0.
        mean: of the training target; added in float64 to what the booster says.
        threads: of XGBoost; 0 means all cores.
    """

    def __init__(
        self,
        encoder: Encoder,
        booster: "xgb.Booster",
        mean: float,
        *,
        threads: int = 0,
        device: str = "cpu",
    ) -> None:
        taken, made = booster.num_features(), len(encoder.columns)
        if taken != made:
            raise ValueError(f"the booster takes {taken} features, the encoder makes {made}")
        booster.set_param({"nthread": threads, "device": device})
        self.encoder = encoder
        self.booster = booster
        self.mean = float(mean)

    def predict(self, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Predictions in units of the target: float64, (rows,), where the frame is.

        Raises as `Encoder.encode`.
        """
        features = self.encoder.encode(frame)
        if len(features) == 0:
            return np.empty(0, dtype=np.float64)
        margin = self.booster.inplace_predict(features, predict_type="margin", missing=math.nan)
        return self.mean + margin.astype(np.float64).reshape(len(features))

    def save(self, folder: Path | str) -> dict[str, str]:
        """Write the model, the manifest last; the SHA-256 of each file by name, it included."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        encoder = {"mean": self.mean, "columns": [c.stored() for c in self.encoder.columns]}
        files = {
            BOOSTER_FILE: bytes(self.booster.save_raw("ubj")),
            ENCODER_FILE: json.dumps(encoder, ensure_ascii=False, indent=1).encode(),
        }
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        manifest = json.dumps({"format": 1, "sha256": digests}, indent=1, sort_keys=True).encode()
        for name, content in {**files, MANIFEST_FILE: manifest}.items():
            (folder / name).write_bytes(content)
        return {**digests, MANIFEST_FILE: hashlib.sha256(manifest).hexdigest()}

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        manifest_sha256: str | None = None,
        threads: int = 0,
        device: str = "cpu",
    ) -> "Scorer":
        """Read what `save` wrote; every byte is checked before it is interpreted.

        A damaged booster can crash XGBoost or change its predictions without a word.

        Args:
            manifest_sha256: of the manifest, from a place that whoever can change the folder
                can't change.

        Raises:
            TamperedModelError: a file is missing or is not the one that was saved.
        """
        import xgboost as xgb

        contents = _verified(Path(folder), manifest_sha256)
        stored = json.loads(contents[ENCODER_FILE])
        encoder = Encoder(tuple(Column(**column) for column in stored["columns"]))
        booster = xgb.Booster(model_file=bytearray(contents[BOOSTER_FILE]))
        return cls(encoder, booster, stored["mean"], threads=threads, device=device)


def numeric_values(series: pd.Series, kind: Kind) -> npt.NDArray[np.float64]:
    """Raw values of a numeric kind as float64 (rows,), NaN where missing.

    Times are seconds since 1970-01-01 UTC (naive ones are taken as UTC), durations seconds.
    Text is read as ISO 8601 for times, as pandas reads it for durations, as numbers for decimals.

    Raises:
        ValueError: values that are not of the kind.
    """
    try:
        return float_values(series, kind)
    except (ValueError, TypeError, OverflowError, decimal.InvalidOperation) as error:
        said = f"column {str(series.name)!r} (type {series.dtype}) does not hold {kind} values"
        raise ValueError(f"{said}: {error}") from error


@singledispatch
def float_values(series: Any, kind: Kind) -> npt.NDArray[np.float64]:
    """What `numeric_values` returns, for one type of series; raises what reading raises.

    This is for pandas. Whoever makes frames of another type registers how these are read.
    """
    return _READERS[kind](series)


@singledispatch
def factorized(series: Any) -> tuple[npt.NDArray[np.intp], Sequence[Any]]:
    """Each row's place in the distinct values of a series, -1 where missing, and those values.

    This is for pandas, as `float_values` is.
    """
    return pd.factorize(series, use_na_sentinel=True)


def category_levels(series: pd.Series) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Each row's place in a list of canonical texts; -1 where missing.

    The texts are in order of appearance and may repeat (1 and "1" are the same category).
    """
    codes, levels = factorized(series)
    # float32 0.1 must read "0.1", as it does in a JSON request, and not 0.10000000149011612
    single = series.dtype in (np.dtype(np.float32), pd.Float32Dtype())
    return codes, [canonical_text(level, single) for level in levels]


def canonical_text(value: Any, single: bool = False) -> str:
    """The text of a category that may be no text; `single`: it was a float of 32 bits."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        number = float(str(np.float32(value))) if single else float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    if isinstance(value, decimal.Decimal):
        return format(value.normalize(), "f") if value else "0"
    if not hasattr(value, "isoformat"):
        return str(value)
    # a day is one category, whether it comes as a date or as its first moment
    return str(value.isoformat()).removesuffix(_MIDNIGHT)


def _feature(column: Column, series: pd.Series) -> npt.NDArray[np.float32]:
    if column.kind == "category":
        codes, texts = category_levels(series)
        # the last entry is what code -1 (missing) picks
        places = [column.codes.get(text, math.nan) for text in texts]
        return np.array([*places, math.nan], dtype=np.float32, like=codes)[codes]
    values = numeric_values(series, column.kind)
    with np.errstate(over="ignore"):
        feature = ((values - column.center) / column.scale).astype(np.float32)
    if (infinite := np.isinf(feature)).any():
        row = int(np.argmax(infinite))
        error = UnscorableValueError(
            f"column {column.name!r} has {int(infinite.sum())} infinite or too large values, "
            f"the first in row {row}: {float(values[row])}; leave them out or make them missing"
        )
        error.column, error.value, error.row = column.name, float(values[row]), row
        raise error
    return feature


def _numbers(series: pd.Series) -> npt.NDArray[np.float64]:
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
        return series.to_numpy().astype(np.float64)  # what is missing is NaN already
    if series.dtype.kind in "biuf":
        return series.to_numpy(dtype=np.float64, na_value=math.nan)
    return _each(series, _number)


def _number(value: Any) -> float:
    if isinstance(value, int | float | decimal.Decimal | np.number | np.bool_):
        return float(value)
    raise ValueError(f"found {value!r}")


def _each(series: pd.Series, convert: Callable[[Any], float]) -> npt.NDArray[np.float64]:
    values = series.astype(object)
    present = values.notna().to_numpy()
    numbers = np.full(len(values), math.nan)
    numbers[present] = [convert(value) for value in values[present]]
    return numbers


def _booleans(series: pd.Series) -> npt.NDArray[np.float64]:
    values = _numbers(series)
    wrong = ~((values == 0) | (values == 1) | np.isnan(values))
    if wrong.any():
        raise ValueError(f"{values[wrong][0]} is neither true nor false")
    return values


def _decimals(series: pd.Series) -> npt.NDArray[np.float64]:
    if series.dtype.kind in "biuf":
        return _numbers(series)
    # by way of Decimal, whose conversion is correctly rounded whatever the storage
    return _each(series, lambda value: float(decimal.Decimal(value)))


def _seconds_since_epoch(series: pd.Series) -> npt.NDArray[np.float64]:
    if series.dtype.kind in "biuf" and series.notna().any():
        raise ValueError("these are numbers; send times as text in ISO 8601")
    if series.dtype.kind == "M" or "date" in str(series.dtype):
        index = pd.DatetimeIndex(series)
    else:
        index = pd.DatetimeIndex(pd.to_datetime(series.astype(object), utc=True, format="ISO8601"))
    return _ticks_to_seconds(index)


def _seconds(series: pd.Series) -> npt.NDArray[np.float64]:
    if series.dtype.kind in "iuf":
        # JSON knows no durations: a served request sends seconds
        return _numbers(series)
    spans = series if series.dtype.kind == "m" else pd.to_timedelta(series.astype(object))
    index = pd.TimedeltaIndex(spans)
    return _ticks_to_seconds(index)


def _ticks_to_seconds(index: pd.DatetimeIndex | pd.TimedeltaIndex) -> npt.NDArray[np.float64]:
    return seconds_of(index.asi8, index.unit, np.asarray(index.isna()))


def seconds_of(
    ticks: npt.NDArray[np.int64], unit: str, missing: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Ticks (rows,) of `unit` (s, ms, us or ns) as seconds, NaN where `missing` is true."""
    # whole and fractional seconds apart: nanoseconds since 1970 need more bits than float64 has,
    # and the same instant must give the same number in every unit
    per_second = _TICKS_PER_SECOND[unit]
    whole, fraction = np.divmod(ticks, per_second)
    seconds = whole.astype(np.float64) + fraction.astype(np.float64) / per_second
    seconds[missing] = math.nan
    return seconds


# the kinds of which `numeric_values` knows how they become float64
_READERS: Mapping[Kind, Callable[[pd.Series], npt.NDArray[np.float64]]] = {
    "number": _numbers,
    "bool": _booleans,
    "time": _seconds_since_epoch,
    "duration": _seconds,
    "decimal": _decimals,
}


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _missing_columns(missing: Sequence[str], there: Sequence[str]) -> str:
    said = []
    for name in missing[:20]:
        near = difflib.get_close_matches(name, there, n=3, cutoff=0.6)
        said.append(f"{name!r}" + (f" (nearest: {', '.join(map(repr, near))})" if near else ""))
    more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    shown = ", ".join(map(repr, there[:50])) + (", …" if len(there) > 50 else "")
    return f"the table lacks columns: {', '.join(said)}{more}; it has {shown or 'no columns'}"


def _verified(folder: Path, manifest_sha256: str | None) -> dict[str, bytes]:
    manifest = _content(folder, MANIFEST_FILE, manifest_sha256)
    try:
        digests = dict(json.loads(manifest)["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise TamperedModelError(f"{folder / MANIFEST_FILE} is not a manifest: {error}") from error
    # a digest that the manifest lacks is no digest, and not one that needn't be checked
    files = (BOOSTER_FILE, ENCODER_FILE)
    return {name: _content(folder, name, str(digests.get(name))) for name in files}


def _content(folder: Path, name: str, recorded: str | None) -> bytes:
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise TamperedModelError(f"the model in {folder} lacks {name}: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if recorded is not None and found != recorded:
        raise TamperedModelError(
            f"{folder / name} is not the file that was saved: its SHA-256 is {found}, recorded is "
            f"{recorded}; it was damaged or tampered with, so the model is refused. "
            "Take the model from its run again, or train it again."
        )
    return content

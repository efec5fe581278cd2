"""The profile pass against scikit-learn and pandas, on any cutting of the table."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from tasks.engine import profile as profiling
from tasks.engine.config import Config
from tasks.engine.dataset import Dataset
from tasks.engine.errors import UserError
from tasks.engine.frames import read_arrow
from tasks.engine.home import Home
from tasks.engine.parts import read_slices
from tasks.engine.planning import plan_of
from tasks.engine.profile import Profile, encoder_from, sample_share, take_profile
from tasks.engine.rows import load
from tasks.engine.split import TRAIN
from tests.engine.tables import dataset_of, write


def table(rows: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Every kind of column, ill-conditioned ones too."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "plain": rng.normal(3, 2, rows),
            "far": 1e9 + rng.normal(0, 1, rows),
            "small": rng.normal(0, 1e-12, rows),
            "constant": 7.0,
            "holes": np.where(rng.random(rows) < 0.3, np.nan, rng.exponential(5, rows)),
            "empty": np.nan,
            "count": pd.array(rng.integers(0, 9, rows), dtype="Int64"),
            "flag": rng.random(rows) < 0.2,
            "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 10**6, rows), "s"),
            "colour": rng.choice(["red", "green", "blue"], rows, p=[0.6, 0.3, 0.1]),
            "y": rng.normal(100, 10, rows),
        }
    )
    frame.loc[::7, "count"] = pd.NA
    frame.loc[::11, "colour"] = None
    return frame


def profiled(
    folder: Path, frames: dict[str, pd.DataFrame], client: Any = None, rows: int = 100, **data: Any
) -> tuple[Dataset, Profile, Home, Any]:
    home = Home(str(folder / "home"))
    dataset, config = dataset_of(write(folder / "data", frames, rows), home, **data)
    plan = plan_of(config, dataset)
    dataset, profile = take_profile(client, dataset, plan, config, home)
    return dataset, profile, home, plan


def test_few_training_rows_of_a_large_table_are_sampled_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "SAMPLE_ROWS", 1_000)
    home = Home(str(tmp_path / "home"))
    frame = table(20_000).assign(part=lambda f: np.where(f.index % 200 == 7, "train", "test"))
    folder = write(tmp_path / "data", {"a.parquet": frame}, 5_000)
    dataset, config = dataset_of(folder, home)
    split = {"kind": "column", "column": "part", "valid": 0}
    config = Config.model_validate({**config.model_dump(), "split": split})
    plan = plan_of(config, dataset)
    for _ in range(2):  # the second time from what is kept
        dataset, profile = take_profile(None, dataset, plan, config, home)
        assert (profile.rows["train"], profile.sample_share) == (100, 1.0)
        assert sum(map(len, read_slices(profile.sample, profile.sample_share))) == 100


def train_rows(dataset: Dataset, plan: Any) -> pd.DataFrame:
    frames = []
    for group in dataset.row_groups():
        rows = load((group,), plan)
        frames.append(rows.frame[rows.side == TRAIN].assign(y=rows.target[rows.side == TRAIN]))
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize(
    ("kind", "scaler"),
    [
        pytest.param("standard", StandardScaler(), id="standard"),
        pytest.param("minmax", MinMaxScaler(), id="minmax"),
    ],
)
def test_the_scaler_equals_scikit_learns_in_64_bits(tmp_path: Path, kind: str, scaler: Any) -> None:
    home = Home(str(tmp_path / "home"))
    folder = write(tmp_path / "data", {"a.parquet": table()})
    dataset, config = dataset_of(folder, home)
    config = config.model_copy(
        update={"normalize": config.normalize.model_copy(update={"kind": kind})}
    )
    plan = plan_of(config, dataset)
    dataset, profile = take_profile(None, dataset, plan, config, home)
    names = ["plain", "far", "small", "constant", "holes", "count"]
    train = train_rows(dataset, plan)[names].astype(np.float64)
    scaler.fit(train)
    centers = scaler.mean_ if kind == "standard" else scaler.data_min_
    scales = scaler.scale_ if kind == "standard" else 1 / scaler.scale_
    spread = scaler.scale_ if kind == "standard" else scaler.data_range_
    columns = {column.name: column for column in encoder_from(profile).columns}
    for i, name in enumerate(names):
        bound = max(abs(centers[i]), spread[i]) if kind == "standard" else max(spread[i], 1e-300)
        bound = max(bound, 1.0) if name == "constant" else bound
        assert abs(columns[name].center - centers[i]) <= 1e-12 * bound, name
        assert abs(columns[name].scale - scales[i]) <= 1e-12 * bound, name
    assert (columns["empty"].center, columns["empty"].scale) == (0.0, 1.0)
    assert columns["colour"].categories == ("blue", "green", "red")


def test_the_profile_says_what_pandas_says(tmp_path: Path) -> None:
    frame = table()
    dataset, profile, _, plan = profiled(tmp_path, {"a.parquet": frame})
    train = train_rows(dataset, plan)
    columns = {column.name: column for column in profile.columns}
    for name in ["plain", "holes", "count"]:
        values = train[name].astype(float)
        assert columns[name].missing == frame[name].isna().sum()
        assert columns[name].mean == pytest.approx(values.mean(), rel=1e-12)
        assert columns[name].deviation == pytest.approx(values.std(ddof=0), rel=1e-12)
        assert columns[name].correlation == pytest.approx(values.corr(train["y"]), abs=1e-12)
    counts = train["colour"].astype(object).value_counts()
    assert dict(columns["colour"].most_frequent) == counts.to_dict()
    assert columns["colour"].missing == frame["colour"].isna().sum()
    assert profile.target["train"].mean == pytest.approx(train["y"].mean(), rel=1e-14)
    assert sum(profile.rows.values()) == len(frame)
    assert "'empty' has no values at all and can't help the model." in profile.notes
    assert "'constant' is constant in the training rows." in profile.notes


def test_it_is_the_same_on_a_cluster_to_the_last_bit(tmp_path: Path, dask_client: Any) -> None:
    frames = {f"{i}.parquet": table(700, seed=i) for i in range(6)}
    _, here, _, _ = profiled(tmp_path / "here", frames)
    _, there, _, _ = profiled(tmp_path / "there", frames, dask_client)
    assert here.model_copy(update={"sample": ()}) == there.model_copy(update={"sample": ()})
    names = [
        [(Path(part.uri).name, part.start, part.rows) for part in profile.sample]
        for profile in (here, there)
    ]
    assert names[0] == names[1]


def test_appended_files_leave_earlier_rows_where_they_were(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    folder = write(tmp_path / "data", {"b.parquet": table(500)})
    dataset, config = dataset_of(folder, home)
    before = load(dataset.files[0].groups(), plan_of(config, dataset)).side
    write(folder, {"a.parquet": table(300, seed=1), "c.parquet": table(300, seed=2)})
    dataset, config = dataset_of(folder, home)
    file = next(file for file in dataset.files if file.path == "b.parquet")
    assert np.array_equal(load(file.groups(), plan_of(config, dataset)).side, before)


def test_nothing_is_read_twice(tmp_path: Path) -> None:
    frames = {"a.parquet": table()}
    dataset, profile, home, plan = profiled(tmp_path, frames)
    again, config = dataset_of(tmp_path / "data", home)
    assert again.digest == dataset.digest
    calls: list[int] = []
    _, known = take_profile(None, again, plan, config, home, lambda done, total: calls.append(done))
    assert known == profile
    assert calls == []


def test_a_file_of_which_only_the_names_were_corrected_is_read_anew(tmp_path: Path) -> None:
    frames = {f"{i}.parquet": table(seed=i)[["plain", "y"]] for i in range(2)}
    frames = {name: frame.assign(twice=2 * frame["plain"]) for name, frame in frames.items()}
    swapped = frames["1.parquet"].rename(columns={"plain": "twice", "twice": "plain"})
    before, wrong, home, _ = profiled(tmp_path, frames | {"1.parquet": swapped})
    write(tmp_path / "data", frames)
    corrected, config = dataset_of(tmp_path / "data", home)
    dataset, profile = take_profile(None, corrected, plan_of(config, corrected), config, home)
    assert dataset.files[0].digest == before.files[0].digest
    assert dataset.digest != before.digest
    assert profile.columns[0].mean != wrong.columns[0].mean


def test_an_altered_profile_is_taken_anew(tmp_path: Path) -> None:
    _, profile, home, plan = profiled(tmp_path, {"a.parquet": table()})
    stored = next((tmp_path / "home" / "profiles").glob("*/profile.json"))
    stored.write_bytes(stored.read_bytes().replace(b'"missing":0', b'"missing":1'))
    again, config = dataset_of(tmp_path / "data", home)
    assert take_profile(None, again, plan, config, home)[1] == profile


def test_rows_that_break_a_rule_are_set_aside_with_the_reason(tmp_path: Path) -> None:
    frame = table()
    frame.loc[[3, 700], "plain"] = -1e6
    frame.loc[9, "y"] = np.nan
    _, profile, _, _ = profiled(
        tmp_path, {"a.parquet": frame}, rules=["plain > -1000"], max_rejected=0.01
    )
    assert profile.reasons == {"breaks 'plain > -1000'": 2, "the target 'y' is missing": 1}
    parts = sorted((tmp_path / "home" / "rejected").rglob("*.parquet"))
    aside = pd.concat([pd.read_parquet(part) for part in parts])
    assert sorted(aside["_row"]) == [4, 10, 701]
    assert set(aside["_file"]) == {"a.parquet"}


def test_too_many_rejected_rows_fail_with_three_of_them(tmp_path: Path) -> None:
    frame = table(300)[["plain", "y"]]
    frame["plain"] = frame["plain"].abs() + 1
    frame.loc[[3, 100, 150, 299], "plain"] = [-1.5, -2.5, -3.5, -4.5]
    frame["y"] = 5.0 + np.arange(300)
    with pytest.raises(UserError) as refused:
        profiled(tmp_path, {"a.parquet": frame}, rules=["plain > 0"])
    folder = next((tmp_path / "home" / "rejected").iterdir())
    assert str(refused.value) == (
        "4 of 300 rows can't be used (breaks 'plain > 0'), more than data.max_rejected=0 allows.\n"
        "- row 4 of a.parquet: breaks 'plain > 0' (plain=-1.5, y=8.0)\n"
        "- row 101 of a.parquet: breaks 'plain > 0' (plain=-2.5, y=105.0)\n"
        "- row 151 of a.parquet: breaks 'plain > 0' (plain=-3.5, y=155.0)\n"
        f"All of them are in {folder}. Mend the data, or set data.max_rejected to the share that "
        "may be left out."
    )


@pytest.mark.parametrize(
    ("column", "values", "data", "message"),
    [
        pytest.param(
            "plain",
            {5: np.inf},
            {},
            "The column 'plain' holds inf in row 6 of a.parquet: features are finite numbers "
            "within ±3.4e+38. Make such values missing, or set their rows aside with a rule such "
            'as "plain < 1e30" and data.max_rejected.',
            id="infinite-feature",
        ),
        pytest.param(
            "weight",
            {8: -1.0},
            {"weight": "weight"},
            "The weight column 'weight' (data.weight) holds -1.0 in row 9 of a.parquet. Weights "
            "are finite numbers of 0 or more.",
            id="negative-weight",
        ),
        pytest.param(
            "colour",
            {i: f"c{i}" for i in range(50)},
            {"max_categories": 20},
            "The column 'colour' has more than 20 categories (data.max_categories). Leave it out "
            "with data.exclude if it names rows, or raise the limit.",
            id="categories",
        ),
    ],
)
def test_bad_values_are_refused_by_column_and_row(
    tmp_path: Path, column: str, values: dict[int, Any], data: dict[str, Any], message: str
) -> None:
    frame = table(300).assign(weight=1.0)
    for row, value in values.items():
        frame.loc[row, column] = value
    with pytest.raises(UserError) as refused:
        profiled(tmp_path, {"a.parquet": frame}, **data)
    assert str(refused.value) == message


def test_a_feature_that_gives_the_answer_away_is_noted(tmp_path: Path) -> None:
    frame = table(500)
    frame["copy"] = frame["y"] * 2 + 1
    _, profile, _, _ = profiled(tmp_path, {"a.parquet": frame})
    assert (
        "'copy' has a correlation of 1.000000 with the target: does it give the answer away? Leave "
        "it out with data.exclude if so."
    ) in profile.notes


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    folder = write(tmp_path / "data", {"a.parquet": table(200)})
    dataset, config = dataset_of(folder, home)
    plan = plan_of(config, dataset)
    write(folder, {"a.parquet": table(200, seed=5)})
    with pytest.raises(UserError, match=r"a\.parquet changed while it was read\. Run again once"):
        take_profile(None, dataset, plan, config, home)


def test_a_file_that_another_took_the_place_of_is_refused_though_it_can_be_read(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "data", {"a.parquet": table(200)[["plain", "y"]]})
    dataset, _ = dataset_of(folder, Home(str(tmp_path / "home")))
    group = dataset.files[0].groups()[0]
    read_arrow([group], ["plain"])  # its footer is known from here on
    write(tmp_path / "new", {"a.parquet": table(200, seed=5)[["plain", "y"]]})
    (tmp_path / "new" / "a.parquet").replace(folder / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet changed while it was read\. Run again once"):
        read_arrow([group], ["plain"])


@pytest.mark.parametrize("rows", [10, 200_000, 200_001, 10**7, 10**9])
def test_the_sample_is_bounded_and_nested(rows: int) -> None:
    share = sample_share(rows, 28)
    assert rows * share <= 200_000
    assert share == 1 or rows * share > 100_000
    assert np.log2(share).is_integer()

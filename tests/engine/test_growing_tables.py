"""A table that grows, shrinks or changes: only what is new is read, for the profile of one go."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.engine import frames as reading
from tasks.engine import profile as profiling
from tasks.engine.config import Config
from tasks.engine.dataset import RowGroup
from tasks.engine.errors import UserError
from tasks.engine.fold import SMALL_FILES, batches
from tasks.engine.home import Home
from tasks.engine.ingest import ingest
from tasks.engine.kept import kept_of, summary_of
from tasks.engine.parts import read_slices
from tasks.engine.planning import plan_of
from tasks.engine.profile import Profile, take_profile
from tasks.engine.summarise import Pass, merged
from tests.engine.tables import write
from tests.engine.test_profile import table

FILES = {f"{name}.parquet": table(250, seed) for seed, name in enumerate("abcdef")}


def profile_of(
    folder: Path, home: Path, client: Any = None, kind: str = "standard", **settings: Any
) -> Profile:
    """The profile of a Parquet folder as a run takes it."""
    data = {"source": str(folder), "target": "y", **settings}
    config = Config.model_validate({"data": data, "normalize": {"kind": kind}})
    kept = Home(str(home))
    dataset = ingest(config.data, kept)
    return take_profile(client, dataset, plan_of(config, dataset), config, kept)[1]


def facts(profile: Profile) -> tuple[dict[str, Any], list[pd.DataFrame]]:
    """All but where the sample is, and its rows."""
    rows = pd.concat(read_slices(profile.sample, profile.sample_share), ignore_index=True)
    for name in rows.columns[rows.dtypes == "category"]:
        rows[name] = rows[name].astype(object)
    return profile.model_dump(exclude={"sample"}), [rows]


def assert_same(found: Profile, expected: Profile) -> None:
    (found_facts, found_rows), (expected_facts, expected_rows) = facts(found), facts(expected)
    assert found_facts == expected_facts
    pd.testing.assert_frame_equal(found_rows[0], expected_rows[0], check_exact=True)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose row groups are read here, as they are read."""
    names: list[str] = []
    before = reading.read_arrow

    def counted(batch: Sequence[RowGroup], columns: Sequence[str]) -> Any:
        names.extend(dict.fromkeys(group.path for group in batch))
        return before(batch, columns)

    monkeypatch.setattr(reading, "read_arrow", counted)
    return names


def changed(folder: Path, change: str) -> None:
    if change == "added":
        write(folder, {"bb.parquet": table(90, 20), "z.parquet": table(130, 21)})
    elif change == "removed":
        (folder / "c.parquet").unlink()
    elif change == "rewritten":
        write(folder, {"c.parquet": table(260, 30)})
    elif change == "renamed":
        (folder / "c.parquet").rename(folder / "g.parquet")


@pytest.mark.parametrize(
    ("change", "fresh"),
    [
        pytest.param("added", ["bb.parquet", "z.parquet"], id="added"),
        pytest.param("removed", [], id="removed"),
        pytest.param("rewritten", ["c.parquet"], id="rewritten"),
        pytest.param("renamed", ["g.parquet"], id="renamed"),
    ],
)
def test_only_what_is_new_is_read_and_the_profile_is_that_of_one_go(
    tmp_path: Path, read: list[str], change: str, fresh: list[str]
) -> None:
    folder = write(tmp_path / "data", FILES)
    profile_of(folder, tmp_path / "home")
    changed(folder, change)
    read.clear()
    found = profile_of(folder, tmp_path / "home")
    assert read == fresh
    assert_same(found, profile_of(folder, tmp_path / "another"))


def test_what_is_kept_of_a_files_earlier_content_is_not_taken(
    tmp_path: Path, read: list[str]
) -> None:
    folder = write(tmp_path / "data", FILES)
    profile_of(folder, tmp_path / "home")
    changed(folder, "rewritten")
    profile_of(folder, tmp_path / "home", exclude=["small"])  # so that its digest is known
    read.clear()
    found = profile_of(folder, tmp_path / "home")
    assert read == ["c.parquet"]
    assert_same(found, profile_of(folder, tmp_path / "another"))


def test_a_table_that_grows_file_by_file_on_a_cluster(tmp_path: Path, dask_client: Any) -> None:
    folder = tmp_path / "data"
    for name in ["e", "b", "a", "f", "c", "d"]:
        write(folder, {f"{name}.parquet": FILES[f"{name}.parquet"]})
        found = profile_of(folder, tmp_path / "home", dask_client)
    assert_same(found, profile_of(folder, tmp_path / "another"))


def test_an_unchanged_table_is_read_neither_as_it_was_nor_for_another_scaler(
    tmp_path: Path, read: list[str]
) -> None:
    folder = write(tmp_path / "data", FILES)
    first = profile_of(folder, tmp_path / "home")
    read.clear()
    assert profile_of(folder, tmp_path / "home") == first
    again = profile_of(folder, tmp_path / "home", kind="minmax")
    assert read == []
    assert_same(again, profile_of(folder, tmp_path / "another", kind="minmax"))


def test_nothing_of_an_unchanged_table_need_be_readable(tmp_path: Path) -> None:
    """Bytes of another kind under the same size and time of change: whoever reads, fails."""
    import os

    folder = write(tmp_path / "data", FILES)
    first = profile_of(folder, tmp_path / "home")
    for file in folder.iterdir():
        status = file.stat()
        file.write_bytes(b"\0" * status.st_size)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert profile_of(folder, tmp_path / "home") == first
    with pytest.raises(UserError, match=r"a\.parquet is not a Parquet file"):
        profile_of(folder, tmp_path / "home", verify=True)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "sample gone"])
def test_what_is_kept_and_damaged_is_read_again(
    tmp_path: Path, read: list[str], damage: str
) -> None:
    folder = write(tmp_path / "data", FILES)
    profile_of(folder, tmp_path / "home")
    (kept,) = (tmp_path / "home" / "profiles").glob("files-*/files.json")
    content = kept.read_bytes()
    if damage == "flipped":
        kept.write_bytes(content.replace(b'"seen":250', b'"seen":251', 1))
    elif damage == "cut":
        kept.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        kept.unlink()
    else:
        next(kept.parent.glob("*.parquet")).unlink()
    write(folder, {"g.parquet": table(50, 9)})
    read.clear()
    found = profile_of(folder, tmp_path / "home")
    assert read == [*FILES, "g.parquet"]
    assert_same(found, profile_of(folder, tmp_path / "another"))


def test_a_sample_that_was_drawn_larger_serves_a_table_that_has_grown(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "SAMPLE_ROWS", 1_600)
    folder = write(tmp_path / "data", FILES)
    assert profile_of(folder, tmp_path / "home").sample_share == 1
    write(folder, {"g.parquet": table(2_000, 9)})
    read.clear()
    found = profile_of(folder, tmp_path / "home")
    assert read == ["g.parquet"]
    assert found.sample_share == 1 / 4
    assert_same(found, profile_of(folder, tmp_path / "another"))
    for name in FILES:
        (folder / name).unlink()
    read.clear()
    found = profile_of(folder, tmp_path / "home")
    assert (found.sample_share, read) == (1 / 2, ["g.parquet"])
    assert_same(found, profile_of(folder, tmp_path / "yet another"))


def test_rejected_rows_of_kept_files_are_in_the_folder_that_the_message_names(
    tmp_path: Path, read: list[str]
) -> None:
    frames = {name: frame.copy() for name, frame in FILES.items()}
    for frame in frames.values():
        frame.loc[7, "plain"] = -1e6
    folder = write(tmp_path / "data", frames)
    rules: dict[str, Any] = {"rules": ["plain > -1000"]}
    profile_of(folder, tmp_path / "home", max_rejected=0.5, **rules)
    shutil.copy(folder / "a.parquet", folder / "g.parquet")
    read.clear()
    with pytest.raises(UserError) as refused:
        profile_of(folder, tmp_path / "home", **rules)
    assert read == ["g.parquet"]
    named = str(refused.value).partition("All of them are in ")[2].partition(". Mend")[0]
    aside = pd.concat([pd.read_parquet(part) for part in sorted(Path(named).iterdir())])
    assert sorted(aside["_file"]) == [*frames, "g.parquet"]
    assert set(aside["_row"]) == {8}
    # what was read is kept though the run failed
    read.clear()
    profile_of(folder, tmp_path / "home", max_rejected=0.5, **rules)
    assert read == []


def test_categories_are_counted_over_all_files(tmp_path: Path) -> None:
    for i in range(4):
        frame = table(60, i).assign(colour=[f"c{i}-{j % 6}" for j in range(60)])
        write(tmp_path / "data", {f"{i}.parquet": frame})
    with pytest.raises(UserError) as refused:
        profile_of(tmp_path / "data", tmp_path / "home", max_categories=20)
    assert str(refused.value) == (
        "The column 'colour' has more than 20 categories (data.max_categories). Leave it out with "
        "data.exclude if it names rows, or raise the limit."
    )


def test_files_whose_columns_have_other_types_do_not_share_a_part(tmp_path: Path) -> None:
    whole = pd.DataFrame({"x": np.arange(200), "y": np.arange(200.0)})
    halves = whole.assign(x=whole["x"] + 0.5)
    folder = write(tmp_path / "data", {"a.parquet": whole, "b.parquet": halves, "c.parquet": whole})
    profile = profile_of(folder, tmp_path / "home")
    assert len(profile.sample) == 3
    assert len({part.uri for part in profile.sample}) == 3
    kinds = [str(frame["x"].dtype) for frame in read_slices(profile.sample, 1.0)]
    assert kinds == ["int64", "float64", "int64"]


def test_a_kept_summary_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    config = Config.model_validate(
        {"data": {"source": str(write(tmp_path / "data", FILES)), "target": "y"}}
    )
    dataset = ingest(config.data, home)
    plan = plan_of(config, dataset)
    this_pass = Pass(plan, 100, 0.5, home.path("s"), home.path("r"))
    found = merged(this_pass(tuple(dataset.files[0].groups()), frozenset()))
    kept = kept_of(dataset.files[0].model_copy(update={"digest": "d"}), found, 0.5)
    again = summary_of(type(kept).model_validate_json(kept.model_dump_json()), plan)
    assert repr(again) == repr(found)
    for name in ("numbers", "beside", "target"):
        for vector, other in zip(
            vars(getattr(again, name)).values(), vars(getattr(found, name)).values(), strict=True
        ):
            assert vector.tobytes() == other.tobytes()
    assert again.with_target.tobytes() == found.with_target.tobytes()


def test_small_files_of_one_layout_share_a_batch_and_large_ones_do_not() -> None:
    small = [_group(f"{i}", 0, 10) for i in range(2 * SMALL_FILES + 1)]
    others = [_group(f"other {i}", 0, 10, "other") for i in range(3)]
    large = [_group("large", i, 100_000) for i in range(3)]
    cut = batches([*small, *others, *large])
    assert [len(batch) for batch in cut] == [SMALL_FILES, SMALL_FILES, 1, 3, 1, 1, 1]
    assert [group for batch in cut for group in batch] == [*small, *others, *large]
    assert [len(batch) for batch in batches(small[:6], rows=20)] == [2, 2, 2]


def _group(path: str, index: int, rows: int, layout: str = "") -> RowGroup:
    return RowGroup(
        uri=f"/t/{path}", path=path, index=index, rows=rows, start=index * rows, layout=layout
    )

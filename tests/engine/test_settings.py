from pathlib import Path

import pytest

from tasks.engine.config import flatten
from tasks.engine.errors import UserError
from tasks.engine.settings import load_config

WRONG = "The configuration is wrong: "


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param(
            "boost.max_dept=3",
            WRONG + "there is no setting 'boost.max_dept'. Did you mean 'boost.max_depth'?",
            id="misspelt",
        ),
        pytest.param(
            "bost.max_depth=3",
            WRONG + "[bost] is not a section. Did you mean 'boost'? Sections are: data, split, "
            "normalize, boost, evaluate, cluster, track.",
            id="section",
        ),
        pytest.param(
            "data.max_depth=3",
            WRONG + "there is no setting 'data.max_depth'. Did you mean 'boost.max_depth'?",
            id="elsewhere",
        ),
        pytest.param(
            "boost.eta=0.3",
            WRONG + "there is no setting 'boost.eta'. Here it is 'boost.learning_rate'.",
            id="other-name",
        ),
        pytest.param(
            "boost.booster='dart'",
            WRONG + "boost.booster can't be set: only tree boosting (gbtree) resumes to the same "
            "bytes.",
            id="left-out",
        ),
        pytest.param(
            "boost.learning_rate=nan",
            WRONG + "boost.learning_rate is nan: it should be a finite number.",
            id="nan",
        ),
        pytest.param(
            "boost.n_estimators=0",
            WRONG + "boost.n_estimators is 0: it should be greater than or equal to 1.",
            id="zero-rounds",
        ),
        pytest.param(
            "boost.max_depth='deep'",
            WRONG + "boost.max_depth is 'deep': it should be a valid integer, unable to parse "
            "string as an integer.",
            id="type",
        ),
        pytest.param(
            "split.kind='random'",
            WRONG + "split.kind is 'random'. It takes 'hash', 'group', 'time' or 'column'.",
            id="choice",
        ),
        pytest.param(
            "split.test=0.95",
            WRONG + "split.valid + split.test is 1.05: no rows left to train on.",
            id="shares",
        ),
        pytest.param(
            "data.source='a.csv'",
            WRONG + "data.target is not set: which column is to be predicted?",
            id="no-target",
        ),
        pytest.param(
            "max_depth=3",
            "--set max_depth=…: a key has a section and a name, as in data.target. Did you mean "
            "'boost.max_depth'?",
            id="no-section",
        ),
        pytest.param(
            "boost.max_depth",
            "--set 'boost.max_depth' has no '='. Write --set KEY=VALUE, as in --set "
            "boost.max_depth=6.",
            id="no-value",
        ),
    ],
)
def test_a_wrong_setting_is_told_with_the_way_out(override: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(overrides=[override])
    assert str(refused.value) == message


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        load_config(overrides=["boost.max_dept=3", "split.seed=-1"])
    assert str(refused.value) == (
        "The configuration is wrong:\n"
        "- split.seed is -1: it should be greater than or equal to 0.\n"
        "- there is no setting 'boost.max_dept'. Did you mean 'boost.max_depth'?"
    )


def test_a_file_and_what_stands_above_it(tmp_path: Path) -> None:
    file = tmp_path / "houses.toml"
    file.write_text(
        '[data]\nsource = "houses.csv"\ntarget = "price"\n[boost]\nmax_depth = 6\n'
        "[boost.monotone_constraints]\nrooms = 1\n"
    )
    config = load_config(
        str(file),
        ["boost.max_depth=4", "track.tags.team=sales", "data.rules=['price > 0']"],
        "b.csv",
    )
    flat = flatten(config)
    assert flat["data.source"] == "b.csv"
    assert flat["boost.max_depth"] == 4
    assert flat["boost.monotone_constraints"] == {"rooms": 1}
    assert flat["track.tags"] == {"team": "sales"}
    assert config.data.rules == ("price > 0",)


def test_a_file_that_is_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        load_config("nowhere.toml")
    assert str(refused.value) == (
        "There is no configuration file 'nowhere.toml'. `boostline init FILE` writes one."
    )
    file = tmp_path / "broken.toml"
    file.write_text("[data\n")
    with pytest.raises(UserError, match=r"broken\.toml is not valid TOML: .* \(at line 1, column"):
        load_config(str(file))

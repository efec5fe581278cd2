"""Which column does what, and what is refused."""

from typing import Any

import pytest

from tasks.engine.config import Config
from tasks.engine.dataset import Column, Dataset
from tasks.engine.errors import UserError
from tasks.engine.roles import Roles, resolve_roles

KINDS = {
    "price": "float",
    "rooms": "integer",
    "city": "string",
    "sold": "date",
    "new": "boolean",
    "w": "decimal",
    "side": "string",
}


def roles(kinds: dict[str, str] = KINDS, target: str = "price", **settings: Any) -> Roles:
    values: dict[str, Any] = {"data": {"source": "x.csv", "target": target}}
    for key, value in settings.items():
        section, name = key.split("__")
        values.setdefault(section, {})[name] = value
    columns = tuple(
        Column.model_validate({"name": name, "kind": kind, "arrow": "list<item: double>"})
        for name, kind in kinds.items()
    )
    return resolve_roles(
        Config.model_validate(values), Dataset(source="x.csv", columns=columns, files=())
    )


def names(found: Roles) -> list[str]:
    return [feature.name for feature in found.features]


def test_features_are_all_other_columns() -> None:
    found = roles()
    assert found.target.name == "price"
    assert names(found) == ["rooms", "city", "sold", "new", "w", "side"]
    assert [f.name for f in found.features if f.categorical] == ["city", "side"]
    assert (found.weight, found.split, found.by) == (None, None, ())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data__weight": "w"}, ["rooms", "city", "sold", "new", "side"]),
        ({"data__exclude": ["w", "sold"]}, ["rooms", "city", "new", "side"]),
        ({"data__features": ["city", "rooms"]}, ["city", "rooms"]),
        ({"split__kind": "column", "split__column": "side"}, ["rooms", "city", "sold", "new", "w"]),
        ({"split__kind": "group", "split__column": "city"}, ["rooms", "sold", "new", "w", "side"]),
        (
            {"split__kind": "time", "split__column": "sold"},
            ["rooms", "city", "sold", "new", "w", "side"],
        ),
    ],
    ids=["weight", "exclude", "features", "labels", "groups", "time"],
)
def test_features(settings: dict[str, Any], expected: list[str]) -> None:
    assert names(roles(**settings)) == expected


def test_other_roles() -> None:
    found = roles(
        data__weight="w",
        data__categories=["rooms"],
        split__kind="time",
        split__column="sold",
        evaluate__by=["city"],
    )
    assert found.weight is not None
    assert found.weight.name == "w"
    assert found.split is not None
    assert found.split.name == "sold"
    assert [column.name for column in found.by] == ["city"]
    assert {f.name for f in found.features if f.categorical} == {"rooms", "city", "side"}
    assert found.columns == ["price", "w", "sold", "city", "rooms", "new", "side"]


ALL = "price, rooms, city, sold, new, w, side"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"target": "prise"},
            "The target column 'prise' (data.target) is not in the table. Did you mean 'price'? "
            f"Its columns are: {ALL}.",
            id="unknown target",
        ),
        pytest.param(
            {"target": "city"},
            "The target column 'city' (data.target) holds text, not numbers. Numbers that are "
            "written as text must be converted in the source. Columns with numbers are: price, "
            "rooms, w.",
            id="target is text",
        ),
        pytest.param(
            {"target": "new"},
            "The target column 'new' (data.target) holds booleans, not numbers. Columns with "
            "numbers are: price, rooms, w.",
            id="target is boolean",
        ),
        pytest.param(
            {"data__features": ["room"]},
            "The feature column 'room' (data.features) is not in the table. Did you mean 'rooms'? "
            f"Its columns are: {ALL}.",
            id="unknown feature",
        ),
        pytest.param(
            {"data__exclude": ["zzz"]},
            "The excluded column 'zzz' (data.exclude) is not in the table. Its columns are: "
            f"{ALL}.",
            id="unknown excluded",
        ),
        pytest.param(
            {"data__categories": ["price"]},
            "'price' is the target and among data.categories: a category can't be predicted.",
            id="target is a category",
        ),
        pytest.param(
            {"data__weight": "city"},
            "The weight column 'city' (data.weight) holds text, not numbers.",
            id="weight is text",
        ),
        pytest.param(
            {"evaluate__by": ["town"]},
            f"The evaluation column 'town' (evaluate.by) is not in the table. Its columns are: "
            f"{ALL}.",
            id="unknown by",
        ),
        pytest.param(
            {"split__kind": "time", "split__column": "city"},
            "The split column 'city' (split.column) holds text: split.kind=time needs dates, "
            "timestamps or, by shares, numbers. Columns with times are: sold.",
            id="time split by text",
        ),
        pytest.param(
            {"split__kind": "column", "split__column": "rooms"},
            "The split column 'rooms' (split.column) holds integers: split.kind=column needs the "
            "labels train, valid and test.",
            id="labels are numbers",
        ),
        pytest.param(
            {"split__kind": "group", "split__column": "price"},
            "'price' is both data.target and split.column.",
            id="split by the target",
        ),
        pytest.param(
            {"data__features": ["w", "rooms"], "data__weight": "w"},
            "'w' is in data.features and in data.weight. Take it out of one.",
            id="weight is a feature",
        ),
        pytest.param(
            {"data__exclude": ["rooms", "city", "sold", "new", "w", "side"]},
            f"No features are left: the table's columns are {ALL}; the target is 'price'. Correct "
            "data.features or data.exclude.",
            id="no features",
        ),
        pytest.param(
            {"kinds": {"price": "float", "a": "other", "b": "other"}},
            "The column 'a' is of the type list<item: double>, which can't be a feature (and b). "
            "Name the features in data.features, or leave it out by data.exclude.",
            id="lists",
        ),
        pytest.param(
            {"boost__monotone_constraints": {"romms": 1}},
            "boost.monotone_constraints names 'romms', which is not a feature. Did you mean "
            "'rooms'? Features are: rooms, city, sold, new, w, side.",
            id="monotone unknown",
        ),
        pytest.param(
            {"boost__monotone_constraints": {"city": -1}},
            "boost.monotone_constraints names 'city', which is a category: its values have no "
            "order. Take it out.",
            id="monotone category",
        ),
        pytest.param(
            {"boost__interaction_constraints": [["rooms", "price"]]},
            "boost.interaction_constraints names 'price', which is not a feature. Features are: "
            "rooms, city, sold, new, w, side.",
            id="interaction with the target",
        ),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        roles(**settings)
    assert str(refused.value) == message

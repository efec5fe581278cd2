"""Which column does what: target, features, weight, split, groups of the evaluation."""

from collections.abc import Collection

from tasks.engine.config import Config
from tasks.engine.dataset import Column, Dataset, Frozen
from tasks.engine.errors import UserError, listing, nearest, unknown_column

_NUMBERS = ("integer", "float", "decimal")


class Feature(Column):
    """A column that the model sees: as a category, or as a number."""

    categorical: bool


class Roles(Frozen):
    """The columns of a run. `features` are in the order of the table, or as the user named them."""

    target: Column
    features: tuple[Feature, ...]
    weight: Column | None = None
    split: Column | None = None
    by: tuple[Column, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The names of all columns that are read, each once."""
        roles = [self.target, self.weight, self.split, *self.by, *self.features]
        return list(dict.fromkeys(column.name for column in roles if column))


def resolve_roles(config: Config, dataset: Dataset) -> Roles:
    """The roles of `dataset`'s columns under `config`.

    Raises:
        UserError: a column is named that the table does not have, is of a kind that its role
            can't use, or has two roles that exclude each other; or no features are left.
    """
    known = {column.name: column for column in dataset.columns}
    check_columns(config, known)
    target = _target(config, known)
    roles = Roles(
        target=target,
        features=_features(config, target, known),
        weight=_weight(config, known),
        split=_split(config, target, known),
        by=tuple(_usable(known[name], "evaluate.by") for name in config.evaluate.by),
    )
    _check_constraints(config, roles)
    return roles


def check_columns(config: Config, known: Collection[str]) -> None:
    """Raises UserError where a column is named that is not among the `known`, a table's."""
    data = config.data
    for role, setting, names in (
        ("target", "data.target", [config.target]),
        ("excluded", "data.exclude", data.exclude),
        ("feature", "data.features", data.features or ()),
        ("category", "data.categories", data.categories),
        ("evaluation", "evaluate.by", config.evaluate.by),
        ("weight", "data.weight", [data.weight] if data.weight else ()),
        ("split", "split.column", [config.split.column] if config.split.column else ()),
    ):
        for name in names:
            if name not in known:
                raise unknown_column(name, role, setting, known)


def _target(config: Config, known: dict[str, Column]) -> Column:
    target = known[config.target]
    if target.name in config.data.categories:
        raise UserError(
            f"{target.name!r} is the target and among data.categories: a category can't be "
            "predicted."
        )
    if target.kind not in _NUMBERS:
        hint = " Numbers that are written as text must be converted in the source."
        raise UserError(
            f"The target column {target.name!r} (data.target) holds {_holds(target)}, not numbers."
            f"{hint if target.kind == 'string' else ''}{_numeric(known, target)}"
        )
    return target


def _numeric(known: dict[str, Column], target: Column) -> str:
    names = [c.name for c in known.values() if c.kind in _NUMBERS and c.name != target.name]
    return f" Columns with numbers are: {listing(names)}." if names else ""


def _holds(column: Column) -> str:
    words = {"string": "text", "boolean": "booleans", "other": column.arrow}
    return words.get(column.kind, f"{column.kind}s")


def _weight(config: Config, known: dict[str, Column]) -> Column | None:
    if not config.data.weight:
        return None
    weight = known[config.data.weight]
    if weight.kind not in _NUMBERS:
        raise UserError(
            f"The weight column {weight.name!r} (data.weight) holds {_holds(weight)}, not numbers."
        )
    return weight


def _split(config: Config, target: Column, known: dict[str, Column]) -> Column | None:
    split = config.split
    if not split.column:
        return None
    column = _usable(known[split.column], "split.column")
    place = f"The split column {column.name!r} (split.column) holds {_holds(column)}"
    if column == target:
        raise UserError(f"{column.name!r} is both data.target and split.column.")
    by_date = bool(split.valid_from or split.test_from)
    accepted = ("date", "timestamp") if by_date else ("date", "timestamp", *_NUMBERS)
    if split.kind == "time" and column.kind not in accepted:
        dated = [c.name for c in known.values() if c.kind in ("date", "timestamp")]
        hint = f" Columns with times are: {listing(dated)}." if dated else ""
        raise UserError(
            f"{place}: split.kind=time needs dates, timestamps or, by shares, numbers.{hint}"
        )
    if split.kind == "column" and column.kind != "string":
        raise UserError(f"{place}: split.kind=column needs the labels train, valid and test.")
    return column


def _usable(column: Column, setting: str) -> Column:
    if column.kind == "other":
        raise UserError(
            f"The column {column.name!r} ({setting}) is of the type {column.arrow}, which can't be "
            "used."
        )
    return column


def _features(config: Config, target: Column, known: dict[str, Column]) -> tuple[Feature, ...]:
    data, split = config.data, config.split
    if data.features is None:
        left_out = {target.name, data.weight, *data.exclude}
        if split.kind in ("column", "group"):
            left_out.add(split.column)
        names = [name for name in known if name not in left_out]
    else:
        names = list(data.features)
        _check_named(config, names)
    odd = [name for name in names if known[name].kind == "other"]
    if odd:
        first = known[odd[0]]
        also = f" (and {listing(odd[1:])})" if odd[1:] else ""
        raise UserError(
            f"The column {first.name!r} is of the type {first.arrow}, which can't be a "
            f"feature{also}. Name the features in data.features, or leave it out by data.exclude."
        )
    if not names:
        raise UserError(
            f"No features are left: the table's columns are {listing(known)}; the target is "
            f"{target.name!r}. Correct data.features or data.exclude."
        )
    return tuple(
        Feature(
            **known[name].model_dump(),
            categorical=known[name].kind == "string" or name in data.categories,
        )
        for name in names
    )


def _check_named(config: Config, names: list[str]) -> None:
    data, split = config.data, config.split
    for name in names:
        other = {data.weight: "data.weight"}
        if split.kind in ("column", "group"):
            other[split.column] = "split.column"
        if name in data.exclude:
            other[name] = "data.exclude"
        if name in other:
            raise UserError(
                f"{name!r} is in data.features and in {other[name]}. Take it out of one."
            )
        if name == config.target:
            raise UserError(f"The target {name!r} is among data.features. Take it out.")


def _check_constraints(config: Config, roles: Roles) -> None:
    features = {feature.name: feature for feature in roles.features}
    boost = config.boost
    named = [("boost.monotone_constraints", name) for name in boost.monotone_constraints]
    named += [
        ("boost.interaction_constraints", name)
        for names in boost.interaction_constraints
        for name in names
    ]
    for setting, name in named:
        if name not in features:
            raise UserError(
                f"{setting} names {name!r}, which is not a feature.{nearest(name, features)} "
                f"Features are: {listing(features)}."
            )
    for name, direction in boost.monotone_constraints.items():
        if direction and features[name].categorical:
            raise UserError(
                f"boost.monotone_constraints names {name!r}, which is a category: its values have "
                "no order. Take it out."
            )

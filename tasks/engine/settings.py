"""Reading a configuration: a TOML file, `--set` overrides, and errors that name the nearest key."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from tasks.engine.config import Config
from tasks.engine.errors import UserError, listing, nearest
from tasks.engine.secrets import by_reference

# how XGBoost, or its other interfaces, call what is set here under another name
OTHER_NAMES = {
    "eta": "learning_rate",
    "lambda": "reg_lambda",
    "alpha": "reg_alpha",
    "min_split_loss": "gamma",
    "num_boost_round": "n_estimators",
    "num_round": "n_estimators",
    "random_state": "seed",
    "max_leaf_nodes": "max_leaves",
}
# what XGBoost has and a training here can't
LEFT_OUT = {
    "booster": "only tree boosting (gbtree) resumes to the same bytes",
    "objective": "it is squared error",
    "eval_metric": "every round's RMSE and R² are always there",
    "sampling_method": "rows are sampled uniformly, by a hash of their position",
    "process_type": "models are trained, not updated",
    "base_score": "it is the exact mean of the training target",
    "device": "it follows from cluster.kind",
    "n_jobs": "set cluster.threads",
    "nthread": "set cluster.threads",
    "missing": "missing values stay missing",
    "enable_categorical": "text columns and data.categories are categories",
}

# Pydantic's words for a type, where they are not a user's
_PLAIN = {
    "tuple_type": 'it should be a list, as in ["a", "b"]',
    "dict_type": "it should be a table, as in {a = 1}",
    "model_type": "it should be a section of settings, as in [data]",
    "date": "it should be a date or a time, as in 2026-01-31",
    "string_pattern_mismatch": "it should have no slash and no colon",
}


def load_config(
    path: str | None = None,
    overrides: Iterable[str] = (),
    data: str | None = None,
    target: str | None = None,
) -> Config:
    """The configuration of a TOML file (or the defaults) with `KEY=VALUE` overrides on top.

    A password or token that is written out in `data.source` goes into this process's environment,
    and a reference to it takes its place: what is kept of a configuration holds no secret.

    Raises:
        UserError: the file can't be read, or a key or value is wrong; names the nearest key.
    """
    values = _read(path) if path else {}
    named = [("data.source", data), ("data.target", target)]
    for key, value in [(k, v) for k, v in named if v is not None]:
        _put(values, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(
                f"--set {override!r} has no '='. Write --set KEY=VALUE, as in "
                "--set boost.max_depth=6."
            )
        _put(values, key.strip(), _value(text.strip()))
    config = parse(values, f" in {path}" if path else "")
    source, secrets = by_reference(config.data.source)
    os.environ.update(secrets)
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})


def parse(values: Mapping[str, Any], where: str = "") -> Config:
    """Raises UserError with one line per wrong setting."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = list(dict.fromkeys(_sentence(detail) for detail in error.errors()))
        shown = f" {lines[0]}" if len(lines) == 1 else "".join(f"\n- {line}" for line in lines)
        raise UserError(f"The configuration is wrong{where}:{shown}") from None


def _read(path: str) -> dict[str, Any]:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"There is no configuration file {path!r}. `boostline init FILE` writes one."
        ) from None
    except OSError as error:
        raise UserError(
            f"The configuration file {path!r} can't be read: {error.strerror}."
        ) from None
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # Windows' editor writes a mark
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise UserError(
            f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8, as TOML must be. Save the file "
            "as UTF-8."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets the dotted `key`; a third part is a key of a table (`track.tags.team`)."""
    section, *rest = key.split(".", 2)
    if not rest or not all(rest):
        known = [f"{name}.{field}" for name, field in _fields()]
        matching = [name for name in known if name.endswith(f".{key}")]
        hint = f" Did you mean {matching[0]!r}?" if matching else nearest(key, known)
        raise UserError(f"--set {key}=…: a key has a section and a name, as in data.target.{hint}")
    table = values.setdefault(section, {})
    if not isinstance(table, dict):
        raise UserError(f"[{section}] is not a section of settings in the configuration file.")
    if len(rest) == 2:
        table = table.setdefault(rest[0], {})
    table[rest[-1]] = value


def _value(text: str) -> Any:
    """A TOML value where the text is one, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fields() -> list[tuple[str, str]]:
    return [
        (section, name)
        for section, field in Config.model_fields.items()
        for name in _section(field.annotation).model_fields
    ]


def _section(annotation: Any) -> type[BaseModel]:
    found: type[BaseModel] = annotation
    return found


def _sentence(detail: Any) -> str:
    """One wrong setting as a sentence: the key, what it got, what would be accepted."""
    place = [str(part) for part in detail["loc"]]
    key, got, kind = ".".join(place[: _depth(place)]), detail["input"], detail["type"]
    if kind == "extra_forbidden":
        known = [f"{section}.{name}" for section, name in _fields()]
        if len(place) == 1:
            return (
                f"[{place[0]}] is not a section.{nearest(place[0], Config.model_fields)} "
                f"Sections are: {listing(Config.model_fields)}."
            )
        if place[0] == "boost" and place[1] in LEFT_OUT:
            return f"{key} can't be set: {LEFT_OUT[place[1]]}."
        if place[0] == "boost" and place[1] in OTHER_NAMES:
            return f"there is no setting {key!r}. Here it is 'boost.{OTHER_NAMES[place[1]]}'."
        elsewhere = [name for name in known if name.endswith(f".{place[1]}")]
        same = [name for name in known if name.startswith(f"{place[0]}.")]
        hint = nearest(key, same) or nearest(key, known)
        hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else hint
        return f"there is no setting {key!r}.{hint}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        sentence = message if message.endswith("?") else f"{message}."
        return f"{key}: {sentence}" if len(place) > 1 else sentence
    if kind == "literal_error":
        return f"{key} is {got!r}. It takes {detail['ctx']['expected']}."
    message = next((said for type_, said in _PLAIN.items() if kind.startswith(type_)), message)
    message = message[0].lower() + message[1:]
    return f"{key} is {got!r}: {message.replace('input should', 'it should')}."


def _depth(place: list[str]) -> int:
    """How many parts of an error's place are the setting's: a table's own key is one more."""
    if len(place) < 3 or place[0] not in Config.model_fields:
        return 2
    section = _section(Config.model_fields[place[0]].annotation)
    return 3 if get_origin(section.model_fields[place[1]].annotation) is dict else 2

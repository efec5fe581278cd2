"""A section of the configuration, and the form that Prefect's pages make of it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def _as_a_form(schema: dict[str, Any]) -> None:
    """Changes the JSON schema of a section to one that a form shows well.

    Labels are the settings' own names, as in a file. A setting that may be unset is a field that
    may be left empty, not a choice between two types, of which one is null: TOML has none either.
    `position` keeps the order where a database sorts keys.
    """
    for position, (name, field) in enumerate(schema.get("properties", {}).items()):
        if field.get("default", "") is None:
            kept = [choice for choice in field.pop("anyOf") if choice.get("type") != "null"]
            field.update(kept[0] if len(kept) == 1 else {"anyOf": kept})
            field["description"] += " Not set by default."
            del field["default"]
        elif "$ref" in field:
            default = field["default"]
            field["default"] = {key: value for key, value in default.items() if value is not None}
        field.update(position=position, title=name)


class Section(BaseModel):
    """A section of the configuration: unknown keys are refused, values never change."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra=_as_a_form,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("it can't be true or false")
        return value

"""The base of all settings: frozen, and an unknown key is an error."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

_LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength")


def name_limits(schema: dict[str, Any]) -> None:
    """In a model's JSON schema, move the limits of an optional field next to its types.

    A form then says `0 is less than the minimum of 1`. With the limits inside `anyOf`, where pydantic puts them, it
    only says that the value `is not valid under any of the given schemas`.
    """
    for field in schema.get("properties", {}).values():
        if {"type": "null"} in field.get("anyOf", ()):
            for kind in field["anyOf"]:
                field.update({name: kind.pop(name) for name in _LIMITS if name in kind})


class Settings(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=name_limits)

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """`epochs: yes` is not one epoch, as it is in Python."""
        if isinstance(value, bool) and info.field_name:
            kinds = _kinds(cls.model_fields[info.field_name].annotation)
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"Input should be a number, not {str(value).lower()}")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that a field takes, those inside of others too."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))

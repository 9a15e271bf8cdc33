"""What every table of the configuration is: strict, frozen, and with pairs of keys that must be in order.

Knows no key.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

__all__ = ["Rise", "Section"]


class Rise(NamedTuple):
    """A pair of keys of one table of which the first must be below the second."""

    lower: str
    upper: str
    may_be_equal: bool = True

    def holds(self, lower: float, upper: float) -> bool:
        """Whether the two values stand in the right order."""
        return lower < upper or (self.may_be_equal and lower == upper)


class Section(BaseModel):
    """One table of the configuration: frozen, strict, without unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    # Checked field by field, so that one bad value of a table does not hide a bad pair beside it.
    rises: ClassVar[tuple[Rise, ...]] = ()

    @field_validator("*", mode="after")
    @classmethod
    def _check_rises(cls, value: object, info: ValidationInfo) -> object:
        known = {**info.data, str(info.field_name): value}
        for rise in cls.rises:
            if info.field_name in rise and rise.lower in known and rise.upper in known:
                values = {"lower_value": known[rise.lower], "upper_value": known[rise.upper]}
                if not rise.holds(*values.values()):
                    message = "{lower} = {lower_value} does not fit {upper} = {upper_value}"
                    raise PydanticCustomError("rise", message, {**rise._asdict(), **values})
        return value

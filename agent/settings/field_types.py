"""Types of single settings: durations, sizes, quantities, names and buckets.

Each type checks its values when the settings are read. A wrong value therefore ends the agent at its start, not in the
middle of an action.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from agent.domain.quantities import quantity, seconds


def size(value: object) -> object:
    """Return text such as "64Mi" as a number of bytes. Return other values unchanged, so that pydantic checks them."""
    return int(quantity(value)) if isinstance(value, str) else value


def checked_quantity(value: str) -> str:
    """Return the text unchanged.

    Raises:
        ValueError: the text is neither empty nor a quantity.
    """
    if value:
        quantity(value)
    return value


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
Size = Annotated[int, BeforeValidator(size), Field(ge=0)]
Quantity = Annotated[str, AfterValidator(checked_quantity)]
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
SecretName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
CloneHost = Annotated[str, Field(pattern=r"^(\[[0-9a-f:.]+\]|[a-z0-9]([-a-z0-9._]{0,251}[a-z0-9])?)(:[0-9]{1,5})?$")]


class Section(BaseModel):
    """Base of every section. Unknown keys are refused, and values never change after the start."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def rising(bounds: tuple[float, ...]) -> tuple[float, ...]:
    """Return the bounds of buckets unchanged.

    Raises:
        ValueError: a bound is not larger than the bound before, or the first bound is not above 0.
    """
    if any(low >= high for low, high in pairwise((0.0, *bounds))):
        raise ValueError("bounds of buckets must rise, from above 0")
    return bounds


Buckets = Annotated[tuple[float, ...], AfterValidator(rising), Field(min_length=1, max_length=50)]

"""Types of single settings: durations, sizes, quantities, resources, names and buckets.

Each type checks its values when the settings are read. A wrong value therefore ends the agent at its start, not in the
middle of an action.
"""

from __future__ import annotations

import ipaddress
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from agent.domain.quantities import MINIMA, quantity, resource_quantity, seconds
from agent.domain.references import image_reference, repository_url, secret_name


def size(value: object) -> object:
    """Return text such as "64Mi" as a number of bytes. Return other values unchanged, so that pydantic checks them."""
    return int(quantity(value)) if isinstance(value, str) else value


def checked_quantity(value: str) -> str:
    """Return the text unchanged.

    Raises:
        ValueError: the text is neither empty nor a quantity above 0.
    """
    # Kubernetes reads 0 as "no limit".
    if value and quantity(value) == 0:
        raise ValueError(f"{value!r} must be above 0; leave the value empty for none")
    return value


def checked_caller(value: str) -> str:
    """Return the text unchanged.

    Raises:
        ValueError: the text is neither `scheduler` nor an IP address or network, or the network has every address.
    """
    if value != "scheduler" and not ipaddress.ip_network(value).prefixlen:
        raise ValueError(f"{value} contains every address")
    return value


def checked_resources(value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return requests and limits of a container, without the quantities that are empty.

    Raises:
        ValueError: a key is unknown, a quantity is malformed or too small, or a request is over its limit.
    """
    if unknown := value.keys() - {"requests", "limits"}:
        raise ValueError(f"{sorted(unknown)[0]}: there is no such key; allowed: requests, limits")
    # Settings are merged over the default, so an empty text is the only way to remove a quantity of the default.
    value = {kind: {name: text for name, text in each.items() if text} for kind, each in value.items()}
    for kind, quantities in value.items():
        for name, text in quantities.items():
            if name not in MINIMA:
                raise ValueError(f"{kind}.{name}: there is no such resource; allowed: {', '.join(MINIMA)}")
            try:
                resource_quantity(name, text)
            except ValueError as error:
                raise ValueError(f"{kind}.{name}: {error}") from error
    limits = value.get("limits", {})
    for name, text in value.get("requests", {}).items():
        if name in limits and quantity(text) > quantity(limits[name]):
            raise ValueError(f"requests.{name}: {text} is over limits.{name}: {limits[name]}")
    return value


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
Size = Annotated[int, BeforeValidator(size), Field(ge=0)]
Quantity = Annotated[str, AfterValidator(checked_quantity)]
Resources = Annotated[dict[str, dict[str, str]], AfterValidator(checked_resources)]
Caller = Annotated[str, AfterValidator(checked_caller)]
HostPattern = Annotated[str, AfterValidator(repository_url.checked_pattern)]
SecretName = Annotated[str, AfterValidator(secret_name.checked_secret_name)]
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$"
# A host and a port, or a target with one of gRPC's own schemes. An address such as `https://host` must be refused,
# because gRPC would look up `https` as a name and dial for ever.
ADDRESS_PATTERN = r"^(([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}|(dns|ipv4|ipv6|unix|xds):.+)$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
CLASS_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$"
ClassName = Annotated[str, Field(pattern=CLASS_PATTERN)]
CloneHost = Annotated[str, Field(pattern=r"^(\[[0-9a-f:.]+\]|[a-z0-9]([-a-z0-9._]{0,251}[a-z0-9])?)(:[0-9]{1,5})?$")]


def checked_image_pattern(value: str) -> str:
    """Return the text unchanged.

    Raises:
        ValueError: the text is no pattern for images.
    """
    if value not in ("*", "**"):
        image_reference.image_reference(value)
    return value


HostName = Annotated[str, Field(pattern=r"^[a-z0-9*]([-a-z0-9.*]{0,251}[a-z0-9*])?$")]
ImagePattern = Annotated[str, AfterValidator(checked_image_pattern)]


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

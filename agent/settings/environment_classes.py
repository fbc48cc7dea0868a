"""Classes of environments: kinds of pods that the installer offers and that an action asks for by name.

A class changes some settings for its actions. Each setting that a class leaves empty is that of the agent. The values
live as long as the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from agent.settings.field_types import ImagePattern, Quantity, Section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.settings import Settings
    from agent.settings.policy import PolicySettings

# Settings of the policy that a class replaces, with their own names.
POLICY_FIELDS = (
    "images",
    "default_cpu",
    "default_memory",
    "default_ephemeral_storage",
    "max_cpu",
    "max_memory",
    "max_ephemeral_storage",
)


def checked_template(template: dict[str, Any]) -> dict[str, Any]:
    """Return the template unchanged.

    Raises:
        ValueError: the template shares the process namespace of the pod or of the node.
    """
    # The supervisor stops the commands with `kill -TERM -1`, which also reaches processes of other containers or of the
    # node if they share the process namespace.
    for name in ("shareProcessNamespace", "hostPID"):
        if template.get("spec", {}).get(name):
            raise ValueError(f"spec.{name}: must not be set, because stop signals go to all processes")
    return template


PodTemplate = Annotated[dict[str, Any], AfterValidator(checked_template)]


class ClassSettings(Section):
    """One class of environments. An empty setting means the agent's own setting."""

    profile: Literal["", "baseline", "restricted"] = Field(
        "", description="Pod Security Standard of the class, in place of `environment.profile`."
    )
    pod_template: PodTemplate = Field(
        default_factory=dict, description="Partial pod, merged after `environment.pod_template`."
    )
    images: tuple[ImagePattern, ...] = Field((), description="Allowed images, in place of `policy.images`.")
    default_cpu: Quantity = Field("", description="CPU request of an action that requests no CPU.")
    default_memory: Quantity = Field("", description="Memory request of an action that requests no memory.")
    default_ephemeral_storage: Quantity = Field("", description="Ephemeral storage of an action that requests none.")
    max_cpu: Quantity = Field("", description="Largest CPU request.")
    max_memory: Quantity = Field("", description="Largest memory request.")
    max_ephemeral_storage: Quantity = Field("", description="Largest ephemeral storage request.")


def policy_of_class(policy: PolicySettings, chosen: ClassSettings) -> PolicySettings:
    """Return the policy for actions of a class.

    Raises:
        ValueError: the settings of the class do not fit the rest of the policy, as a default over a maximum.
    """
    update = {name: value for name in POLICY_FIELDS if (value := getattr(chosen, name))}
    try:
        return type(policy).model_validate({**dict(policy), **update})
    except ValidationError as error:
        raise ValueError("; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())) from error


def class_policies(settings: Settings, policy: PolicySettings) -> Mapping[str, PolicySettings]:
    """Return the policy of each class by the name of the class. `policy` is that of actions without a class."""
    return {name: policy_of_class(policy, each) for name, each in settings.environment.classes.items()}


def settings_of_class(settings: Settings, name: str) -> Settings:
    """Return the settings for pods of a class. A class that the settings do not have changes nothing.

    An agent can adopt a pod whose class it does not have. The pod exists already, so its class changes little then.
    """
    chosen = settings.environment.classes.get(name)
    if chosen is None:
        return settings
    profile = chosen.profile or settings.environment.profile
    environment = settings.environment.model_copy(update={"profile": profile})
    policy = policy_of_class(settings.policy, chosen)
    return settings.model_copy(update={"environment": environment, "policy": policy})

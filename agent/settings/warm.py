"""The section of the settings about warm pods. It lives as long as the process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from agent.domain.references import image_reference
from agent.settings.field_types import ClassName, Duration, ImagePattern, Quantity, Section

Image = Annotated[str, AfterValidator(image_reference.checked_image)]


class WarmPool(Section):
    """Warm pods of one shape. An action takes one only if its image, its class and its resources are the same."""

    # `class` is a keyword of Python, so the attribute has another name than the setting.
    model_config = ConfigDict(serialize_by_alias=True)

    image: Image = Field(description="Image, written exactly as actions name it.")
    environment_class: ClassName | Literal[""] = Field(
        "", alias="class", description="Class of the actions, one of `environment.classes`. If empty, no class."
    )
    cpu: Quantity = Field("", description="CPU request. If empty, `default_cpu` of the class or the policy.")
    memory: Quantity = Field("", description="Memory request. If empty, `default_memory` of the class or the policy.")
    ephemeral_storage: Quantity = Field("", description="Ephemeral storage. If empty, the policy's default.")
    min: int = Field(1, ge=0, le=500, description="Number of pods that always wait.")
    max: int = Field(0, ge=0, le=500, description="Largest number of pods that wait when many actions come.")

    @model_validator(mode="after")
    def in_order(self) -> WarmPool:
        """Refuse a pool that could never have a pod, or whose bounds contradict each other."""
        if max(self.min, self.max) == 0:
            raise ValueError("min or max must be above 0")
        if self.max and self.max < self.min:
            raise ValueError(f"max ({self.max}) must be 0 or at least min ({self.min})")
        return self

    @property
    def most(self) -> int:
        """Return the largest number of waiting pods."""
        return max(self.min, self.max)


class WarmLearn(Section):
    """Warm pods for images that actions use often, without an entry in `warm.pools`."""

    images: tuple[ImagePattern, ...] = Field(
        ("*",), description="Images for which the agent may learn, as patterns like those of `policy.images`."
    )
    # A class may have expensive nodes, so the installer names each class.
    classes: tuple[ClassName, ...] = Field(
        (),
        description="Classes for whose actions the agent learns too. For actions without a class it always learns.",
    )
    max_pods: int = Field(0, ge=0, le=500, description="Largest number of learned warm pods. 0 switches learning off.")
    idle_after: Duration = Field(
        600.0, gt=0, description="Time without a matching action until the agent keeps no more pods than `min`."
    )


class WarmSettings(Section):
    """Warm pods: pods that wait with a started image, so that an action begins at once. Off by default."""

    pools: tuple[WarmPool, ...] = Field(
        (),
        max_length=100,
        description="Pools of warm pods, as `{image: ..., class: ..., cpu: ..., memory: ..., ephemeral_storage: ..., "
        "min: 2, max: 10}`. Only `image` is needed.",
    )
    learn: WarmLearn = WarmLearn()
    max_pods: int = Field(20, ge=1, le=500, description="Largest number of warm pods of one agent.")
    max_age: Duration = Field(
        1800.0, ge=60, description="Time until the agent replaces a warm pod that no action took."
    )
    stale_tags: Duration = Field(
        0.0,
        description="With `environment.image_pull_policy: Always`, the age up to which a warm pod may run an image "
        "that is named by a tag. 0: such images get no warm pods.",
    )

    @property
    def enabled(self) -> bool:
        """Return whether the agent may keep warm pods."""
        return bool(self.pools or self.learn.max_pods)

    @model_validator(mode="after")
    def fits(self) -> WarmSettings:
        """Refuse more waiting pods than `max_pods`."""
        wanted = sum(pool.min for pool in self.pools)
        if wanted > self.max_pods:
            raise ValueError(f"the pools want {wanted} pods (min), and max_pods is {self.max_pods}")
        return self

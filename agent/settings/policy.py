"""The sections of the settings that limit what an action may ask for. They live as long as the process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from agent.domain.quantities import quantity, resource_quantity
from agent.settings.field_types import (
    Duration,
    HostName,
    HostPattern,
    ImagePattern,
    Quantity,
    SecretName,
    Section,
)


class PolicySettings(Section):
    """Limits on the requests of actions."""

    images: tuple[ImagePattern, ...] = Field(
        ("*",),
        description="Allowed images, as patterns `HOST/PATH:TAG`. `*` stays within one part of a host, path or tag, "
        "`**` matches several parts. `*` alone allows every image.",
    )
    require_digest: bool = Field(
        False, description="Refuse images that are not named with a digest, as in `NAME@sha256:...`."
    )
    default_cpu: Quantity = Field("100m", description="CPU request of an action that requests no CPU.")
    default_memory: Quantity = Field("256Mi", description="Memory request of an action that requests no memory.")
    default_ephemeral_storage: Quantity = Field(
        "",
        description="Ephemeral storage of an action that requests none, as request and limit. "
        "If empty, the limit is `policy.max_ephemeral_storage` or else `environment.workspace_limit`.",
    )
    limit_cpu: bool = Field(False, description="Set the CPU request of an action as its CPU limit too.")
    limit_memory: bool = Field(
        True,
        description="Set the memory that an action requests as its memory limit too. "
        "With `policy.max_memory`, the default becomes the limit of an action that requests no memory.",
    )
    max_cpu: Quantity = Field(
        "", description="Largest CPU request. Bounds the use of CPU only with `limit_cpu`. If empty, no maximum."
    )
    max_memory: Quantity = Field("", description="Largest memory request. If empty, there is no maximum.")
    max_ephemeral_storage: Quantity = Field(
        "", description="Largest ephemeral storage request. If empty, there is no maximum."
    )
    default_timeout: Duration = Field(
        3600.0, gt=0, description="Timeout of the commands of an action that sets no timeout."
    )
    max_timeout: Duration = Field(86400.0, gt=0, description="Largest timeout that an action may set.")
    max_commands: int = Field(500, ge=1, le=1000, description="Largest number of commands of an action.")
    max_variables: int = Field(
        500, ge=0, description="Largest number of environment variables of an action, secrets included."
    )
    repository_schemes: tuple[Literal["https", "ssh", "http", "git"], ...] = Field(
        ("https", "ssh"), description="Allowed URL schemes of repositories."
    )
    repository_hosts: tuple[HostPattern, ...] = Field(
        ("*",),
        description="Allowed repositories, as patterns `HOST[:PORT][/PATH]`. A path allows everything below it. "
        "Submodules are not compared.",
    )
    credentials: dict[SecretName, Annotated[tuple[HostPattern, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Secrets that actions may name for cloning, each with the repositories that it may be used for, "
        'as `{NAME: ["HOST[:PORT][/PATH]"]}`. An action may name no other Secret.',
    )
    service_images: tuple[ImagePattern, ...] = Field(
        (), description="Allowed images of services, as patterns. If empty, those of `policy.images`."
    )
    service_aliases: tuple[HostName, ...] = Field(
        (),
        description="Allowed host names of services with a dot, as patterns such as `*.test`. Names without a dot are "
        "always allowed. Every container of the pod resolves them to its services, also the clone.",
    )
    privileged_services: tuple[ImagePattern, ...] = Field(
        (),
        description="Images whose services may be privileged, as patterns. A privileged service has all rights of root "
        "on its node. The namespace of actions must allow such pods.",
    )
    cache: Literal["off", "read", "read-write"] = Field(
        "read-write", description="Whether actions may restore caches, and whether they may save them too."
    )
    pending_timeout: Duration = Field(300.0, gt=0, description="Longest time until a pod has a node.")
    pull_grace: Duration = Field(
        30.0,
        gt=0,
        description="Time in which the kubelet may retry a failed image pull, or a failed sandbox of the pod, "
        "before the action fails.",
    )
    registry_grace: Duration = Field(
        40.0, gt=0, description="As `pull_grace`, when the registry cannot be reached or is overloaded."
    )
    pull_timeout: Duration = Field(
        600.0, gt=0, description="Longest time for all images to be pulled and all containers to start."
    )
    clone_timeout: Duration = Field(600.0, gt=0, description="Longest time for the repository to be cloned.")

    @model_validator(mode="after")
    def defaults_within_maxima(self) -> PolicySettings:
        """Refuse a default that is too small for a container or above its maximum, and a limit without a default."""
        rows = (
            ("cpu", self.default_cpu, self.max_cpu, self.limit_cpu),
            ("memory", self.default_memory, self.max_memory, self.limit_memory),
            ("ephemeral_storage", self.default_ephemeral_storage, self.max_ephemeral_storage, False),
        )
        for name, default, maximum, limited in rows:
            for key, text in ((f"default_{name}", default), (f"max_{name}", maximum)):
                if text:
                    try:
                        resource_quantity(name.replace("_", "-"), text)
                    except ValueError as error:
                        raise ValueError(f"policy.{key}: {error}") from error
            if default and maximum and quantity(default) > quantity(maximum):
                raise ValueError(f"policy.default_{name}: {default} is over policy.max_{name}: {maximum}")
            # Without a default, Kubernetes would take the limit as the request, and one action would fill a node.
            if maximum and limited and not default:
                raise ValueError(f"policy.default_{name}: must be set, because policy.max_{name} and limit_{name} are")
        return self


class ServiceSettings(Section):
    """Limits on the services of one action, and their defaults."""

    max: int = Field(
        5, ge=0, le=20, description="Largest number of services of an action. With 0 the agent runs no services."
    )
    timeout: Duration = Field(
        120.0, gt=0, description="Longest time from the start of all containers until all services are ready."
    )
    cpu: Quantity = Field("100m", description="CPU request of a service that requests no CPU.")
    memory: Quantity = Field(
        "256Mi",
        description="Memory request of a service that requests no memory. "
        "With `policy.limit_memory`, the request of a service is its limit too.",
    )
    max_cpu: Quantity = Field("2", description="Largest CPU request of a service. If empty, there is no maximum.")
    max_memory: Quantity = Field(
        "4Gi", description="Largest memory request of a service. If empty, there is no maximum."
    )

    @model_validator(mode="after")
    def defaults_within_maxima(self) -> ServiceSettings:
        """Refuse a default that is too small for a container or above its maximum."""
        for name, default, maximum in (("cpu", self.cpu, self.max_cpu), ("memory", self.memory, self.max_memory)):
            for key, text in ((name, default), (f"max_{name}", maximum)):
                if text:
                    try:
                        resource_quantity(name, text)
                    except ValueError as error:
                        raise ValueError(f"services.{key}: {error}") from error
            if default and maximum and quantity(default) > quantity(maximum):
                raise ValueError(f"services.{name}: {default} is over services.max_{name}: {maximum}")
        return self

"""Read the settings of the agent from defaults, a YAML file, the environment and flags.

Each source overrides the sources before it: defaults, YAML file (`--config` or `SEALCI_CONFIG`), `SEALCI_*` variables,
flags. In a variable's name, two underscores separate section and key: `SEALCI_AGENT__SLOTS=20`. A setting never holds a
secret, only the path of a file with the secret. Secrets can therefore be rotated and never show in a process list. One
`Settings` is read at the start and lives as long as the process. `docs/settings.md` and the chart's values are
generated from the descriptions of the settings.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from agent.domain.errors import SettingsError
from agent.domain.references.image_reference import image_matches
from agent.settings.connection import ClassicSettings, SchedulerSettings, Tls
from agent.settings.environment_classes import ClassSettings, class_policies, policy_of_class, settings_of_class
from agent.settings.field_types import NAME_PATTERN, checked_quantity, size
from agent.settings.objects import CacheSettings, ObjectSettings
from agent.settings.policy import PolicySettings, ServiceSettings
from agent.settings.sections import (
    AgentSection,
    ArtifactSettings,
    ClusterSettings,
    EnvironmentSettings,
    HttpSettings,
    LoggingSettings,
    LogSettings,
    MetricsSettings,
    TracesSettings,
)
from agent.settings.warm import WarmSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "NAME_PATTERN",
    "PREFIX",
    "AgentSection",
    "ArtifactSettings",
    "CacheSettings",
    "ClassSettings",
    "ClassicSettings",
    "ClusterSettings",
    "EnvironmentSettings",
    "HttpSettings",
    "LogSettings",
    "LoggingSettings",
    "MetricsSettings",
    "ObjectSettings",
    "PolicySettings",
    "SchedulerSettings",
    "ServiceSettings",
    "Settings",
    "Tls",
    "TracesSettings",
    "WarmSettings",
    "checked_quantity",
    "class_policies",
    "load",
    "settings_of_class",
    "size",
]

PREFIX = "SEALCI_"
# Variables that begin with `SEALCI_` and are no settings. SEALCI_COMMIT is the commit that the image was built from.
# `sealci_agent_build_info` shows it.
NOT_SETTINGS = frozenset({"SEALCI_CONFIG", "SEALCI_CACHE", "SEALCI_COMMIT"})
# The kubelet adds variables with these endings for every Service whose name begins with `sealci-`.
SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)$")


class Settings(BaseSettings):
    """All settings of the agent, one attribute per section."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    scheduler: SchedulerSettings = SchedulerSettings()
    agent: AgentSection = AgentSection()
    cluster: ClusterSettings = ClusterSettings()
    environment: EnvironmentSettings = EnvironmentSettings()
    warm: WarmSettings = WarmSettings()
    policy: PolicySettings = PolicySettings()
    services: ServiceSettings = ServiceSettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    objects: ObjectSettings = ObjectSettings()
    # Not `cache`, because SEALCI_CACHE is the folder of the local cluster's programs.
    caches: CacheSettings = CacheSettings()
    logs: LogSettings = LogSettings()
    http: HttpSettings = HttpSettings()
    metrics: MetricsSettings = MetricsSettings()
    traces: TracesSettings = TracesSettings()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="after")
    def warm_pods_can_be_used(self) -> Settings:
        """Refuse pools of warm pods that no action could ever get, and classes that the settings do not have."""
        classes = self.environment.classes
        names = {f"warm.pools[{number}].class": each.environment_class for number, each in enumerate(self.warm.pools)}
        names |= {f"warm.learn.classes[{number}]": name for number, name in enumerate(self.warm.learn.classes)}
        for key, name in names.items():
            if name and name not in classes:
                there_are = ", ".join(sorted(classes)) or "none"
                raise ValueError(f"{key}: there is no class {name!r} in environment.classes; there are: {there_are}")
        for number, pool in enumerate(self.warm.pools):
            where = f"warm.pools[{number}].image: {pool.image!r}"
            own = classes[pool.environment_class].images if pool.environment_class else ()
            patterns = own or self.policy.images
            if not any(image_matches(pool.image, allowed) for allowed in patterns):
                setting = f"environment.classes.{pool.environment_class}.images" if own else "policy.images"
                raise ValueError(f"{where} is not allowed by {setting}: {', '.join(patterns)}")
            moves = "@" not in pool.image and self.environment.image_pull_policy == "Always"
            if moves and not self.warm.stale_tags:
                raise ValueError(
                    f"{where} is a tag, and environment.image_pull_policy is Always: "
                    "name a digest, or set warm.stale_tags"
                )
        return self

    @model_validator(mode="after")
    def caches_have_a_store(self) -> Settings:
        """Refuse a cache in an object store that the agent does not use."""
        if self.caches.store == "objects" and self.objects.issuer != "agent":
            raise ValueError("caches.store: is objects, so objects.issuer must be agent")
        return self

    @model_validator(mode="after")
    def classes_fit_the_policy(self) -> Settings:
        """Refuse a class whose resources do not fit the rest of the policy."""
        for name, each in self.environment.classes.items():
            try:
                policy_of_class(self.policy, each)
            except ValueError as error:
                raise ValueError(f"environment.classes.{name}: {error}") from error
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of settings. Each source overrides the sources after it: flags, environment, file."""
        # The agent reads no .env file and no folder of secrets.
        del dotenv_settings, file_secret_settings
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls))


def load(file: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check all sources.

    Raises:
        SettingsError: a key is unknown or a value is wrong. The message names every such key, one per line.
    """
    environ = os.environ if environ is None else environ
    file = file or (Path(environ["SEALCI_CONFIG"]) if environ.get("SEALCI_CONFIG") else None)
    if file is not None and not file.is_file():
        raise SettingsError(f"--config: {file} is not a file")
    refuse_unknown_variables(environ)

    class SettingsFromFile(Settings):
        # pydantic takes the path of the YAML file from the class only.
        model_config = SettingsConfigDict(yaml_file=file)

    try:
        return SettingsFromFile(**flags)
    except ValidationError as error:
        raise SettingsError("\n".join(describe_error(detail) for detail in error.errors())) from error
    except (ValueError, OverflowError, LookupError, TypeError, RecursionError, OSError, yaml.YAMLError) as error:
        raise SettingsError(f"the settings cannot be read: {error}") from error


def admission_policy(settings: Settings) -> PolicySettings:
    """Return the policy for actions. With the classic scheduler, it has the Secrets of `clone_credentials` too.

    A classic scheduler names no Secret. The agent chooses the Secret by the host of the repository, so the policy binds
    the Secret to this host.
    """
    policy = settings.policy
    if settings.scheduler.protocol != "classic":
        return policy
    credentials = {name: tuple(patterns) for name, patterns in policy.credentials.items()}
    for host, name in settings.scheduler.classic.clone_credentials.items():
        # An entry of `clone_credentials` without a port stands for every port of its host.
        patterns = (host,) if ":" in host else (host, f"{host}:*")
        credentials[name] = (*credentials.get(name, ()), *patterns)
    return policy.model_copy(update={"credentials": credentials})


def refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """Refuse variables that begin with `SEALCI_` and name no setting. pydantic would ignore a misspelled variable.

    Raises:
        SettingsError: a variable names no setting. The message names all such variables, one per line.
    """
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and not is_known_variable(name))
    if unknown:
        raise SettingsError("\n".join(f"{name}: there is no such setting" for name in unknown))


def is_known_variable(variable: str) -> bool:
    """Whether the agent accepts an environment variable that begins with `SEALCI_`."""
    if variable in NOT_SETTINGS or ("__" not in variable and SERVICE_LINK.search(variable)):
        return True
    model: type[BaseModel] = Settings
    for part in variable.removeprefix(PREFIX).lower().split("__"):
        if part not in model.model_fields:
            return False
        kind = model.model_fields[part].annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            # This part of the variable's name is a setting and not a section. The parts after it are keys of a mapping
            # such as `agent.labels`.
            return True
        model = kind
    return True


def describe_error(detail: Any) -> str:
    """Describe one validation error. The text names the key and the environment variable."""
    path = [str(part) for part in detail["loc"]]
    if not path:
        # The error is about two sections that do not fit together. Its message names the settings.
        return str(detail["msg"]).removeprefix("Value error, ")
    key = ".".join(path)
    variable = PREFIX + "__".join(part.upper() for part in path)
    if detail["type"] == "extra_forbidden":
        return f"{key} ({variable}): there is no such setting{suggestion(path)}"
    return f"{key} ({variable}): {detail['msg']}; got {detail['input']!r}"


def suggestion(path: Sequence[str]) -> str:
    """Return the end of a message that suggests the setting closest to the last part of `path`, or ""."""
    model: type[BaseModel] = Settings
    for part in path[:-1]:
        kind = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return ""
        model = kind
    close = get_close_matches(path[-1], list(model.model_fields), n=1)
    return f", did you mean {'.'.join([*path[:-1], close[0]])!r}?" if close else ""

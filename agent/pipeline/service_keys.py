"""Read the keys of the services of an action in a pipeline file.

The functions keep no state. Each raises `PipelineFileError` with the line and the key of a value that is not allowed.
The agent checks names and limits against its policy, so only what no policy can allow is refused here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent.domain.actions import HealthCommand, OnExit, Resources, Service, ServiceLog
from agent.pipeline.action_keys import (
    read_env,
    read_image,
    read_resources,
    read_secret_names,
    read_timeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from agent.pipeline.yaml_document import Value

    Result = TypeVar("Result")

SERVICE_KEYS = (
    "container",
    "ports",
    "health",
    "env",
    "secrets",
    "aliases",
    "command",
    "args",
    "resources",
    "scratch",
    "privileged",
    "on_exit",
    "log",
)
HEALTH_KEYS = ("command", "timeout")
# The name of a service is a host name and a part of the name of its container.
SERVICE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?")
HOST_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
FOLDER = re.compile(r"(/[A-Za-z0-9._-]+)+")


def read_services(value: Value, secrets: tuple[str, ...]) -> tuple[Service, ...]:
    """Return the services of an action. `secrets` are the names of the action's secrets."""
    services = []
    for name, item in value.mapping("a mapping from names to services").items():
        with item.document.collect():
            if not SERVICE_NAME.fullmatch(name):
                item.refuse_key("is not the name of a service: 1 to 50 of a-z, 0-9 and '-', no '-' at the ends")
        with item.document.collect():
            services.append(read_service(name, item, secrets))
    check_ports(value, services)
    return tuple(services)


def read_service(name: str, value: Value, secrets: tuple[str, ...]) -> Service:
    """Return a service. Each key that is wrong is noted, and gets its default."""
    keys = value.mapping("a service, a mapping", SERVICE_KEYS)
    with value.document.collect():
        if "container" not in keys:
            value.refuse_missing("`container` is missing: the image of the service")
    no_env: dict[str, str] = {}
    env = optional(keys, "env", lambda own: read_env(own, {}), no_env)
    return Service(
        name=name,
        image=optional(keys, "container", read_image, ""),
        aliases=optional(keys, "aliases", read_aliases, ()),
        command=optional(keys, "command", read_words, ()),
        args=optional(keys, "args", read_words, ()),
        env=env,
        secrets=optional(keys, "secrets", lambda names: read_service_secrets(names, env, secrets), ()),
        ports=optional(keys, "ports", read_ports, ()),
        health=optional(keys, "health", read_health, None),
        resources=optional(keys, "resources", read_resources, Resources()),
        scratch=optional(keys, "scratch", read_scratch, ()),
        privileged=optional(keys, "privileged", lambda each: each.boolean(), False),
        on_exit=optional(
            keys, "on_exit", lambda each: OnExit(each.choice(kind.value for kind in OnExit)), OnExit.CRASH_FAILS
        ),
        log=optional(
            keys, "log", lambda each: ServiceLog(each.choice(kind.value for kind in ServiceLog)), ServiceLog.ON_FAILURE
        ),
    )


def optional(keys: Mapping[str, Value], name: str, reader: Callable[[Value], Result], default: Result) -> Result:
    """Return what `reader` makes of a key, or `default` if the key is missing or refused."""
    return keys[name].attempt(reader, default) if name in keys else default


def read_aliases(value: Value) -> tuple[str, ...]:
    aliases = []
    for item in value.items("a list of host names"):
        alias = item.text("a host name")
        if not HOST_NAME.fullmatch(alias):
            item.refuse(f"must be a host name of a-z, 0-9, '-' and dots, not {alias!r}")
        aliases.append(alias)
    return tuple(aliases)


def read_words(value: Value) -> tuple[str, ...]:
    """Return a program and its arguments. No shell is involved, so a text is not split into words."""
    words = tuple(
        item.text("a word of the command") for item in value.items('a list of words, such as [sh, -c, "..."]')
    )
    if not words:
        value.refuse("must have at least one word")
    return words


def read_service_secrets(value: Value, env: Mapping[str, str], secrets: tuple[str, ...]) -> tuple[str, ...]:
    names = read_secret_names(value, env)
    for item, name in zip(value.items("a list of names"), names, strict=True):
        if name not in secrets:
            item.refuse(f"{name} is not listed in the `secrets` of the action")
    return names


def read_ports(value: Value) -> tuple[int, ...]:
    ports: list[int] = []
    for item in value.items("a list of ports"):
        text = item.text("a port")
        if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
            item.refuse(f"must be a port from 1 to 65535, not {text!r}")
        if int(text) in ports:
            item.refuse(f"{text} is listed twice")
        ports.append(int(text))
    return tuple(ports)


def read_health(value: Value) -> HealthCommand:
    keys = value.mapping("{command: [PROGRAM, ARGUMENT]}", HEALTH_KEYS)
    if "command" not in keys:
        value.refuse_missing("`command` is missing: a program that succeeds when the service is ready")
    timeout = read_timeout(keys["timeout"]) if "timeout" in keys else None
    return HealthCommand(read_words(keys["command"]), timeout)


def read_scratch(value: Value) -> tuple[str, ...]:
    folders: list[str] = []
    for item in value.items("a list of folders"):
        folder = item.text("a folder")
        if not FOLDER.fullmatch(folder) or ".." in folder.split("/"):
            item.refuse(f"must be an absolute path without '..', not {folder!r}")
        if folder in folders:
            item.refuse(f"{folder} is listed twice")
        folders.append(folder)
    return tuple(folders)


def check_ports(value: Value, services: list[Service]) -> None:
    """Refuse a port of two services. All services of an action share one network."""
    owners: dict[int, str] = {}
    entries = value.mapping("a mapping from names to services")
    for service in services:
        for port in service.ports:
            with value.document.collect():
                if port in owners:
                    entries[service.name].refuse_key(f"declares port {port}, which {owners[port]} declares too")
            owners.setdefault(port, service.name)

"""Checks the services of an action against the policy and the settings. Pure.

The names of services are host names in every container of the pod, also while the repository is cloned. So a service
must not take the name of another host.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.domain.references.image_reference import image_matches
from agent.domain.references.part_patterns import host_matches
from agent.domain.references.repository_url import read_repository_url
from agent.execution.admission_checks import image_problems, resource_problems, variable_problems
from agent.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.domain.actions import Action, Service
    from agent.settings import PolicySettings, Settings

# The name of a service is a part of the name of its container, which has at most 63 characters.
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?")
LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
ALIAS = re.compile(rf"{LABEL}(\.{LABEL})*")
# Names that the hosts file of a pod has for itself. A name of digits only would be read as an address.
RESERVED = re.compile(r"localhost|ip6-.*|sealci-.*|[0-9.]+|.*\.localhost")
SCRATCH = re.compile(r"(/[A-Za-z0-9._-]+)+")
# Folders of the system, and of the agent's own volumes in other containers.
SYSTEM_FOLDERS = ("/proc", "/sys", "/dev", "/.sealci")
MAX_ALIASES = 20
MAX_PORTS = 20
MAX_SCRATCH = 10
# Maximum number of bytes in the command, the arguments, the health command and the variables of one service. All of
# them are a part of the pod, which must fit into etcd's limit of 1.5 MiB.
MAX_SERVICE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class ServiceRules:
    """The settings that limit services, besides the policy. They live as long as the agent.

    `restricted`: pods have the profile `restricted`. `host_network`: pods use the network of their node. `classes` has
    the rules of each class of environments.
    """

    limits: ServiceSettings
    restricted: bool = False
    host_network: bool = False
    classes: Mapping[str, ServiceRules] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> ServiceRules:
        environment = settings.environment
        own = cls(settings.services, environment.profile == "restricted", uses_host_network(environment.pod_template))
        classes = {
            name: cls(
                own.limits,
                (each.profile or environment.profile) == "restricted",
                uses_host_network(each.pod_template, own.host_network),
            )
            for name, each in environment.classes.items()
        }
        return replace(own, classes=classes)


def uses_host_network(pod_template: Mapping[str, Any], default: bool = False) -> bool:
    """Whether pods of a template use the network of their node. `default` is for a template that does not set it."""
    return bool(pod_template.get("spec", {}).get("hostNetwork", default))


NO_RULES = ServiceRules(ServiceSettings())


def service_problems(action: Action, policy: PolicySettings, rules: ServiceRules) -> Iterator[str]:
    """Yield the problems of all services of an action."""
    rules = rules.classes.get(action.environment_class, rules)
    services, most = action.services, rules.limits.max
    if len(services) > most:
        yield f"services: {len(services)} are too many; at most {most} (setting services.max)"
        return
    if services and rules.host_network:
        yield "services: not possible, because the agent's pod template sets hostNetwork"
    for number, service in enumerate(services, 1):
        field = f"services.{service.name[:50] or number}"
        yield from name_problems(field, service, action, policy)
        yield from container_problems(field, service, action, policy, rules)
        yield from readiness_problems(field, service, rules)
    yield from shared_name_problems(services)
    yield from shared_port_problems(services)


def name_problems(field: str, service: Service, action: Action, policy: PolicySettings) -> Iterator[str]:
    if not NAME.fullmatch(service.name):
        yield f"{field}: {service.name[:100]!r} is not a name; allowed: 1 to 50 of a-z, 0-9 and -, no - at the ends"
    if len(service.aliases) > MAX_ALIASES:
        yield f"{field}.aliases: {len(service.aliases)} are too many; at most {MAX_ALIASES}"
        return
    host = repository_host(action)
    for name in (service.name, *service.aliases):
        if RESERVED.fullmatch(name):
            yield f"{field}: the host name {name[:100]!r} is reserved"
        elif host and name == host:
            yield f"{field}: the host name {name[:253]!r} is the host of the repository"
    for alias in service.aliases:
        if len(alias) > 253 or not ALIAS.fullmatch(alias):
            yield f"{field}.aliases: {alias[:100]!r} is not a host name of a-z, 0-9, - and dots"
        elif RESERVED.fullmatch(alias):
            continue
        elif "." in alias and not any(host_matches(alias, pattern) for pattern in policy.service_aliases):
            allowed = ", ".join(policy.service_aliases) or "none"
            yield f"{field}.aliases: {alias[:100]!r} has a dot and is not allowed; policy.service_aliases: {allowed}"


def repository_host(action: Action) -> str:
    """Return the host of the action's repository; "" without one."""
    if action.repository is None:
        return ""
    try:
        return read_repository_url(action.repository.url).host
    except ValueError:
        return ""


def container_problems(
    field: str, service: Service, action: Action, policy: PolicySettings, rules: ServiceRules
) -> Iterator[str]:
    """Yield the problems of what becomes the container of a service."""
    allowed = policy.service_images or policy.images
    yield from image_problems(f"{field}.image", service.image, allowed, require_digest=policy.require_digest)
    limits = rules.limits
    yield from resource_problems(
        f"{field}.resources", service.resources, limits.max_cpu, limits.max_memory, policy.max_ephemeral_storage
    )
    yield from variable_problems(f"{field}.env", service.env)
    for name in service.secrets:
        if name not in action.secrets:
            yield f"{field}.secrets: {name[:100]!r} is not a secret of the action"
        if name in service.env:
            yield f"{field}.secrets: {name[:100]!r} is also set in env"
    words = (*service.command, *service.args, *(service.health.command if service.health else ()))
    size = sum(map(len, words)) + sum(len(name) + len(value) for name, value in service.env.items())
    if size > MAX_SERVICE_BYTES:
        yield f"{field}: its commands and variables have {size} characters; at most {MAX_SERVICE_BYTES}"
    if any("\0" in word for word in words):
        yield f"{field}: a NUL byte cannot be part of a command"
    yield from scratch_problems(f"{field}.scratch", service.scratch)
    if service.privileged and rules.restricted:
        yield f"{field}.privileged: the profile restricted forbids it"
    elif service.privileged and not any(image_matches(service.image, each) for each in policy.privileged_services):
        yield f"{field}.privileged: policy.privileged_services does not name the image {service.image[:512]!r}"


def scratch_problems(field: str, paths: tuple[str, ...]) -> Iterator[str]:
    if len(paths) > MAX_SCRATCH:
        yield f"{field}: {len(paths)} folders are too many; at most {MAX_SCRATCH}"
        return
    for path in paths:
        parts = path.split("/")
        if len(path) > 253 or not SCRATCH.fullmatch(path) or "." in parts or ".." in parts:
            yield f"{field}: {path[:100]!r} is not an absolute path of letters, digits, '.', '_' and '-'"
        elif any(path == each or path.startswith(f"{each}/") for each in SYSTEM_FOLDERS):
            yield f"{field}: {path[:100]!r} is a folder of the system"
    if repeated := [path for path, count in Counter(paths).items() if count > 1]:
        yield f"{field}: {repeated[0][:100]!r} is listed twice"


def readiness_problems(field: str, service: Service, rules: ServiceRules) -> Iterator[str]:
    if len(service.ports) > MAX_PORTS:
        yield f"{field}.ports: {len(service.ports)} are too many; at most {MAX_PORTS}"
    for port in service.ports[:MAX_PORTS]:
        if not 1 <= port <= 65535:
            yield f"{field}.ports: {port} is not a port; allowed: 1 to 65535"
    if service.health is None:
        return
    if not service.health.command or not service.health.command[0]:
        yield f"{field}.health.command: is missing"
    if (service.health.timeout or 0) > rules.limits.timeout:
        limit = f"{rules.limits.timeout:g} s (setting services.timeout)"
        yield f"{field}.health.timeout: {service.health.timeout:g} s is over the maximum of {limit}"


def shared_name_problems(services: tuple[Service, ...]) -> Iterator[str]:
    """Yield a problem for each host name that stands for two services, or twice for one."""
    owners: dict[str, str] = {}
    for service in services:
        for name in (service.name, *service.aliases[:MAX_ALIASES]):
            if name in owners:
                both = f"{owners[name][:50]!r} and {service.name[:50]!r}"
                yield f"services: the host name {name[:100]!r} is given twice, for {both}"
            owners.setdefault(name, service.name)


def shared_port_problems(services: tuple[Service, ...]) -> Iterator[str]:
    """Yield a problem for each port of two services. All services of an action share one network."""
    owners: dict[int, str] = {}
    for service in services:
        for port in service.ports[:MAX_PORTS]:
            if port in owners:
                both = f"{owners[port][:50]!r} and {service.name[:50]!r}"
                yield f"services: the port {port} is declared twice, for {both}"
            owners.setdefault(port, service.name)

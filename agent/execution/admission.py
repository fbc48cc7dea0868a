"""Checks an action against the policy before anything is created, which is the earliest place for a clear error.

Pure. Each problem names the field, its value and what is allowed. All problems of an action are reported at once.
"""

from __future__ import annotations

from functools import partial
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING

from agent.domain.actions import MAX_GLOB_CHARACTERS, MAX_GLOBS
from agent.domain.errors import ActionFailed, Reason, Stage
from agent.domain.references.repository_url import (
    RepositoryUrl,
    holds_credentials,
    read_repository_url,
    scheme_of,
    url_matches,
)
from agent.domain.references.secret_name import checked_secret_name
from agent.domain.session_state import Feature
from agent.execution.admission_checks import cache_problems, image_problems, resource_problems, variable_problems
from agent.execution.services.admission import NO_RULES, ServiceRules, service_problems
from agent.settings import admission_policy, class_policies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agent.domain.actions import Action
    from agent.settings import PolicySettings, Settings

# Maximum number of bytes in all commands together. The same number limits all variables together, with their names. The
# Pod and the Secret must fit into etcd's limit of 1.5 MiB.
MAX_COMMANDS_BYTES = 512 * 1024
MAX_VARIABLES_BYTES = 512 * 1024
# Maximum number of characters of a repository's URL and of a ref.
MAX_URL = 2048
MAX_REF = 1024
# Maximum number of problems in one report. A message of 16 MiB can hold millions of wrong values.
MAX_PROBLEMS = 50


def agent_features(settings: Settings) -> tuple[Feature, ...]:
    """Return the features of the contract that this agent has. A setting can switch a feature off."""
    services = (Feature.SERVICES,) if settings.services.max else ()
    return (Feature.INPUTS, Feature.OBJECT_PACKS, Feature.CACHE, *services)


def admission_of(settings: Settings) -> Callable[[Action], float]:
    """Return `admit` with the policies and the rules of these settings."""
    policy = admission_policy(settings)
    return partial(admit, policy=policy, classes=class_policies(settings, policy), rules=ServiceRules.of(settings))


def admit(
    action: Action,
    policy: PolicySettings,
    classes: Mapping[str, PolicySettings] = MappingProxyType({}),
    rules: ServiceRules = NO_RULES,
) -> float:
    """Check every field of an action against the policy. Returns the timeout of the commands in seconds.

    `classes` has the policy of each class of environments. `policy` is for actions without a class. `rules` are the
    limits on services that no policy holds.

    `rules` is what the policy does not hold of the limits on services.

    Raises:
        ActionFailed: with INVALID_CONFIGURATION and a list of all problems.
    """
    policy = classes.get(action.environment_class, policy)
    found = chain(
        identity(action),
        environment_class(action, classes),
        image_problems("image", action.image, policy.images, require_digest=policy.require_digest),
        commands(action, policy),
        variables(action, policy),
        repository(action, policy),
        resource_problems(
            "resources", action.resources, policy.max_cpu, policy.max_memory, policy.max_ephemeral_storage
        ),
        timeout(action, policy),
        artifacts(action),
        service_problems(action, policy, rules),
        cache_problems(action),
    )
    problems = list(islice(found, MAX_PROBLEMS))
    if problems:
        text = "; ".join(problems)
        raise ActionFailed(Stage.ADMISSION, Reason.INVALID_CONFIGURATION, text, log="\n".join(problems))
    return action.timeout or min(policy.default_timeout, policy.max_timeout)


def identity(action: Action) -> Iterator[str]:
    if not action.key.action_id or len(action.key.action_id.encode()) > 256:
        yield "action_id: must have 1 to 256 bytes"


def environment_class(action: Action, classes: Mapping[str, PolicySettings]) -> Iterator[str]:
    """Yield a problem if the action names a class that this agent does not have."""
    name = action.environment_class
    if name and name not in classes:
        there_are = f"there are: {', '.join(classes)}" if classes else "this agent has no classes"
        yield f"class: there is no class {name[:100]!r}; {there_are}"


def commands(action: Action, policy: PolicySettings) -> Iterator[str]:
    if not action.commands:
        yield "commands: at least one is needed"
    if len(action.commands) > policy.max_commands:
        yield f"commands: {len(action.commands)} are too many; at most {policy.max_commands}"
        return
    sizes = [len(command.encode()) for command in action.commands]
    for index, command in enumerate(action.commands, 1):
        if "\0" in command:
            yield f"commands[{index}]: a NUL byte cannot be part of a command"
    if sum(sizes) > MAX_COMMANDS_BYTES:
        yield f"commands: {sum(sizes)} bytes in all are too many; at most {MAX_COMMANDS_BYTES}"


def variables(action: Action, policy: PolicySettings) -> Iterator[str]:
    """Yield the problems of env and secrets: their names, their number and their size. No problem contains a secret
    value.
    """
    both = {**action.env, **action.secrets}
    if len(both) > policy.max_variables:
        yield f"env and secrets: {len(both)} are too many; at most {policy.max_variables}"
        return
    for kind, values in (("env", action.env), ("secrets", action.secrets)):
        yield from variable_problems(kind, values)
    size = sum(len(name) + len(value.encode()) for name, value in both.items())
    if size > MAX_VARIABLES_BYTES:
        yield f"env and secrets: {size} bytes are too many; at most {MAX_VARIABLES_BYTES}"


def repository(action: Action, policy: PolicySettings) -> Iterator[str]:
    """Yield the problems of the repository. No problem contains the URL, because the URL may hold a password."""
    asked = action.repository
    if asked is None:
        return
    for name, text, limit in (("url", asked.url, MAX_URL), ("ref", asked.ref, MAX_REF)):
        if len(text) > limit:
            yield f"repository.{name}: has {len(text)} characters; at most {limit}"
            return
    # Git would read a URL or a ref with a leading `-` as an option.
    if asked.url.startswith("-") or asked.ref.startswith("-"):
        yield "repository: url and ref must not start with a dash"
    if holds_credentials(asked.url):
        yield "repository.url: must not hold credentials; name a Secret in repository.credentials"
    scheme = scheme_of(asked.url)
    if scheme and scheme not in policy.repository_schemes:
        allowed = ", ".join(policy.repository_schemes)
        yield f"repository.url: the scheme {scheme[:50]!r} is not allowed; allowed: {allowed}"
        return
    try:
        url = read_repository_url(asked.url)
    except ValueError as error:
        yield f"repository.url: {error}"
        return
    if not any(url_matches(url, pattern) for pattern in policy.repository_hosts):
        hosts = ", ".join(policy.repository_hosts)
        yield f"repository.url: the host {url.host[:253]} is not allowed; policy.repository_hosts: {hosts}"
    if asked.credentials:
        yield from repository_credentials(asked.credentials, url, policy)


def repository_credentials(name: str, url: RepositoryUrl, policy: PolicySettings) -> Iterator[str]:
    """Yield a problem if the policy does not bind the Secret `name` to the repository.

    Without this check, an action could send any Secret of the namespace to any server.
    """
    try:
        checked_secret_name(name)
    except ValueError as error:
        yield f"repository.credentials: {error}"
        return
    patterns = policy.credentials.get(name, ())
    if not patterns:
        yield f"repository.credentials: policy.credentials of the agent names no Secret {name!r}"
    elif not any(url_matches(url, pattern) for pattern in patterns):
        yield f"repository.credentials: the Secret {name!r} may be used for {', '.join(patterns)} only"


def timeout(action: Action, policy: PolicySettings) -> Iterator[str]:
    if action.timeout is not None and not 0 < action.timeout <= policy.max_timeout:
        yield f"timeout: {action.timeout:.15g} s is not allowed; more than 0, at most {policy.max_timeout:.15g} s"


def artifacts(action: Action) -> Iterator[str]:
    """Yield the problems of the globs: their number and their length, which bound the work of each copy."""
    rules = action.artifacts
    for name, globs in (("artifacts.paths", rules.paths), ("artifacts.exclude", rules.exclude)):
        if len(globs) > MAX_GLOBS:
            yield f"{name}: {len(globs)} globs are too many; at most {MAX_GLOBS}"
        for glob in globs[:MAX_GLOBS]:
            if len(glob) > MAX_GLOB_CHARACTERS:
                yield f"{name}: {glob[:50]!r}... has {len(glob)} characters; at most {MAX_GLOB_CHARACTERS}"
            if "\0" in glob:
                yield f"{name}: {glob[:50]!r} holds a NUL byte"

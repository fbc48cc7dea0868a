"""An action held against the policy, before anything is started: the earliest place for a clear error.

Pure. Each problem names the field, what it was and what is allowed; all problems of an action are told at once.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from agent.domain.errors import ActionFailed, Reason, Stage
from agent.domain.quantities import quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.actions import Action, Resources
    from agent.settings import PolicySettings

MAX_COMMAND = 128 * 1024 - 1
MAX_COMMANDS = 512 * 1024
MAX_VARIABLES = 512 * 1024
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DIGEST = re.compile(r"[^@]@sha256:[0-9a-f]{64}\Z")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def admit(action: Action, policy: PolicySettings) -> float:
    """Check everything that the wire may ask for; returns the timeout of the commands in seconds.

    Raises:
        ActionFailed: with INVALID_CONFIGURATION and every problem that was found.
    """
    problems = [
        *identity(action),
        *image(action, policy),
        *commands(action, policy),
        *variables(action, policy),
        *repository(action, policy),
        *resources(action.resources, policy),
        *timeout(action, policy),
    ]
    if problems:
        text = "; ".join(problems)
        raise ActionFailed(Stage.ADMISSION, Reason.INVALID_CONFIGURATION, text, log="\n".join(problems))
    return action.timeout or min(policy.default_timeout, policy.max_timeout)


def identity(action: Action) -> Iterator[str]:
    """Check the id."""
    if not action.key.action_id or len(action.key.action_id.encode()) > 256:
        yield "action_id: must have 1 to 256 bytes"


def image(action: Action, policy: PolicySettings) -> Iterator[str]:
    """Check the image against the allow list."""
    if not action.image:
        yield "image: is missing"
    elif len(action.image) > 512 or re.search(r"\s", action.image):
        yield f"image: {action.image[:100]!r} is not an image reference"
    elif not any(fnmatchcase(action.image, allowed) for allowed in policy.images):
        yield f"image: {action.image!r} is not allowed; allowed: {', '.join(policy.images)}"
    if action.image and policy.require_digest and not DIGEST.search(action.image):
        yield f"image: {action.image[:512]!r} has no digest, and the policy wants one: NAME@sha256:..."


def commands(action: Action, policy: PolicySettings) -> Iterator[str]:
    """Check number and size of the commands."""
    if not action.commands:
        yield "commands: at least one is needed"
    if len(action.commands) > policy.max_commands:
        yield f"commands: {len(action.commands)} are too many; at most {policy.max_commands}"
    sizes = [len(command.encode()) for command in action.commands]
    for index, (command, size) in enumerate(zip(action.commands, sizes, strict=True), 1):
        if size > MAX_COMMAND:
            yield f"commands[{index}]: {size} bytes are too many; at most {MAX_COMMAND}"
        if "\0" in command:
            yield f"commands[{index}]: a NUL byte cannot be part of a command"
    if sum(sizes) > MAX_COMMANDS:
        yield f"commands: {sum(sizes)} bytes in all are too many; at most {MAX_COMMANDS}"


def variables(action: Action, policy: PolicySettings) -> Iterator[str]:
    """Check names, number and size of env and secrets. Values of secrets never appear."""
    both = {**action.env, **action.secrets}
    for kind, values in (("env", action.env), ("secrets", action.secrets)):
        for name, value in values.items():
            if not VARIABLE.fullmatch(name) or len(name) > 253:
                yield f"{kind}: {name[:100]!r} is not a variable name; allowed: letters, digits and _, no digit first"
            if "\0" in value:
                yield f"{kind}: the value of {name[:100]!r} holds a NUL byte"
    if len(both) > policy.max_variables:
        yield f"env and secrets: {len(both)} are too many; at most {policy.max_variables}"
    size = sum(len(name) + len(value.encode()) for name, value in both.items())
    if size > MAX_VARIABLES:
        yield f"env and secrets: {size} bytes are too many; at most {MAX_VARIABLES}"


def repository(action: Action, policy: PolicySettings) -> Iterator[str]:
    """Check how the repository would be cloned."""
    asked = action.repository
    if asked is None:
        return
    match = SCHEME.match(asked.url)
    scheme = match[1].lower() if match else ("ssh" if re.match(r"[\w.-]+@[\w.-]+:[^:]", asked.url) else "")
    allowed = ", ".join(policy.repository_schemes)
    if scheme not in policy.repository_schemes:
        yield f"repository.url: the scheme {scheme or 'of a path'!r} is not allowed; allowed: {allowed}"
    if asked.url.startswith("-") or asked.ref.startswith("-"):
        yield "repository: url and ref must not start with a dash"
    if match and scheme in ("http", "https") and "@" in asked.url[match.end() :].split("/")[0]:
        yield "repository.url: must not hold credentials; name a Secret in repository.credentials"
    if asked.credentials and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", asked.credentials):
        yield f"repository.credentials: {asked.credentials[:100]!r} is not the name of a Secret"


def resources(asked: Resources, policy: PolicySettings) -> Iterator[str]:
    """Check quantities against the maxima."""
    pairs = (
        ("cpu", asked.cpu, policy.max_cpu),
        ("memory", asked.memory, policy.max_memory),
        ("ephemeral_storage", asked.ephemeral_storage, policy.max_ephemeral_storage),
    )
    for name, value, maximum in pairs:
        if not value:
            continue
        try:
            number = quantity(value)
        except ValueError as error:
            yield f"resources.{name}: {error}"
            continue
        if maximum and number > quantity(maximum):
            yield f"resources.{name}: {value} is over the maximum of {maximum}"


def timeout(action: Action, policy: PolicySettings) -> Iterator[str]:
    """Check the timeout against the maximum."""
    if action.timeout is not None and not 0 < action.timeout <= policy.max_timeout:
        yield f"timeout: {action.timeout:g} s is not allowed; more than 0, at most {policy.max_timeout:g} s"

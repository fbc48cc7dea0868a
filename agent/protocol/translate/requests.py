"""Translation of the scheduler's requests: actions, cancellations, resume points."""

from __future__ import annotations

from agent.domain import actions as domain
from agent.domain import session_state
from agent.domain.artifacts import MAX_INPUT_FILES, MAX_INPUTS, Input, InputFile
from agent.domain.paths import safe_components
from agent.protocol.translate.caches import cache, cache_message, cache_scope, cache_scope_message
from agent.protocol.translate.fields import (
    MAX_DURATION,
    MAX_GRACE,
    STAGES,
    WHENS,
    checked_key,
    cursor,
    duration,
    human_text,
    invalid,
    member,
    refuse_unknown_fields,
    seconds,
)
from agent.protocol.translate.services import resources, resources_message, service, service_message
from agent.protocol.wire import agent_pb2 as wire

# Number of bytes of a SHA-256 digest.
SHA256_BYTES = 32

# ---- functions for the agent, which reads requests


def action(message: wire.Action) -> domain.Action:
    """Return the action that a scheduler sends in a message.

    Raises:
        ActionFailed: a field is invalid. The message of the error names the field and the allowed values.
    """
    found = checked_key(message)
    refuse_unknown_fields(message)
    if not message.image.strip():
        invalid("image", "an empty text", "the reference of an image")
    if not message.commands:
        invalid("commands", "an empty list", "one command or more")
    timeout = seconds(message.timeout) if message.HasField("timeout") else None
    if timeout is not None and not 0 < timeout <= MAX_DURATION:
        invalid("timeout", f"{timeout:g} s", f"more than 0 s and at most {MAX_DURATION} s, or unset for the default")
    return domain.Action(
        key=found,
        image=message.image,
        commands=tuple(message.commands),
        name=message.name,
        env=dict(message.env),
        secrets=dict(message.secrets),
        repository=repository(message.repository) if message.HasField("repository") else None,
        resources=resources(message.resources),
        timeout=timeout,
        artifacts=artifact_rules(message.artifacts),
        traceparent=message.traceparent,
        pipefail=message.shell.pipefail if message.shell.HasField("pipefail") else None,
        services=tuple(service(each, number) for number, each in enumerate(message.services, 1)),
        environment_class=message.environment_class,
        inputs=inputs(message),
        caches=tuple(cache(each, number) for number, each in enumerate(message.caches, 1)),
        cache_scope=cache_scope(message.cache_scope) if message.HasField("cache_scope") else None,
    )


def inputs(message: wire.Action) -> tuple[Input, ...]:
    """Return the inputs of an action.

    Raises:
        ActionFailed: there are too many, or a path leaves the workspace.
    """
    files = sum(len(each.files) for each in message.inputs)
    if len(message.inputs) > MAX_INPUTS:
        invalid("inputs", f"a list of {len(message.inputs)}", f"at most {MAX_INPUTS}")
    if files > MAX_INPUT_FILES:
        invalid("inputs", f"a list of {files} files in all", f"at most {MAX_INPUT_FILES}")
    return tuple(input_of(f"inputs[{number}]", each) for number, each in enumerate(message.inputs, 1))


def input_of(field: str, message: wire.Input) -> Input:
    source = getattr(message, "from")  # `from` is a keyword of Python
    if message.to:
        check_path(f"{field}.to", message.to.encode())
    files = tuple(
        InputFile(each.path, each.mode & 0o777, each.size, each.sha256, each.uri, each.offset) for each in message.files
    )
    found = Input(source, message.to, files, message.optional)
    for file in files:
        check_path(f"{field}.files.path", found.target(file))
        if len(file.sha256) != SHA256_BYTES:
            invalid(f"{field}.files.sha256", f"a value of {len(file.sha256)} bytes", f"{SHA256_BYTES} bytes")
    return found


def check_path(field: str, path: bytes) -> None:
    """Refuse a path that leaves the workspace."""
    try:
        safe_components(path)
    except ValueError:
        invalid(field, repr(path[:200]), "a relative path without empty parts, '.' and '..'")


def repository(message: wire.Repository) -> domain.Repository:
    if not message.url.strip():
        invalid("repository.url", "an empty text", "the URL of a repository")
    return domain.Repository(
        message.url, message.ref, message.depth, message.submodules, message.credentials, message.lfs
    )


def artifact_rules(message: wire.ArtifactRules) -> domain.ArtifactRules:
    """Return which files are artifacts, and after which results of the commands the files are copied.

    If the message names no result, the files are copied after a success.
    """
    when = domain.When.SUCCESS
    if message.when != wire.ArtifactRules.WHEN_UNSPECIFIED:
        when = member("artifacts.when", message.when, WHENS)
    return domain.ArtifactRules(tuple(message.paths), tuple(message.exclude), when)


def cancel(message: wire.Cancel) -> domain.Cancel:
    """Return a cancellation. No value is refused, because the agent must obey every cancellation.

    A negative grace counts as unset. A grace over `MAX_GRACE` becomes `MAX_GRACE`.
    """
    grace = seconds(message.grace) if message.HasField("grace") else None
    return domain.Cancel(min(grace, MAX_GRACE) if grace is not None and grace >= 0 else None, message.message)


def resume(message: wire.Resume) -> session_state.Resume:
    """Return the resume point that a scheduler sends in a message.

    Raises:
        ActionFailed: a field is invalid.
    """
    return session_state.Resume(
        key=checked_key(message),
        seq=message.seq,
        cursor=cursor("cursor", message.cursor),
        stage=member("stage", message.stage, STAGES) if message.stage != wire.STAGE_UNSPECIFIED else None,
        command=message.command,
        cancel=cancel(message.pending_cancel) if message.HasField("pending_cancel") else None,
        secrets=dict(message.secrets),
        service_cursors=dict(message.service_cursors),
        action=action(message.action) if message.HasField("action") else None,
    )


# ---- functions for a scheduler, which writes requests


def action_message(value: domain.Action) -> wire.Action:
    message = wire.Action(
        action_id=value.key.action_id,
        attempt=value.key.attempt,
        claim=value.key.claim,
        name=value.name,
        image=value.image,
        commands=value.commands,
        env=value.env,
        secrets=value.secrets,
        resources=resources_message(value.resources),
        timeout=duration(value.timeout) if value.timeout is not None else None,
        artifacts=wire.ArtifactRules(
            paths=value.artifacts.paths, exclude=value.artifacts.exclude, when=WHENS[value.artifacts.when]
        ),
        traceparent=value.traceparent,
        shell=wire.Shell(pipefail=value.pipefail) if value.pipefail is not None else None,
        services=[service_message(each) for each in value.services],
        environment_class=value.environment_class,
        inputs=[input_message(each) for each in value.inputs],
        caches=[cache_message(each) for each in value.caches],
        cache_scope=cache_scope_message(value.cache_scope) if value.cache_scope is not None else None,
    )
    if (source := value.repository) is not None:
        message.repository.CopyFrom(
            wire.Repository(
                url=source.url,
                ref=source.ref,
                depth=source.depth,
                submodules=source.submodules,
                credentials=source.credentials,
                lfs=source.lfs,
            )
        )
    return message


def input_message(value: Input) -> wire.Input:
    files = (
        wire.InputFile(
            path=each.path, mode=each.mode, size=each.size, sha256=each.sha256, uri=each.uri, offset=each.offset
        )
        for each in value.files
    )
    message = wire.Input(to=value.to, files=files, optional=value.optional)
    setattr(message, "from", human_text(value.source))
    return message


def cancel_message(attempt_key: tuple[str, int], value: domain.Cancel) -> wire.Cancel:
    action_id, attempt = attempt_key
    grace = duration(value.grace) if value.grace is not None else None
    return wire.Cancel(action_id=action_id, attempt=attempt, grace=grace, message=human_text(value.message))


def resume_message(value: session_state.Resume) -> wire.Resume:
    return wire.Resume(
        action_id=value.key.action_id,
        attempt=value.key.attempt,
        claim=value.key.claim,
        seq=value.seq,
        cursor=value.cursor.encode(),
        stage=STAGES[value.stage] if value.stage is not None else wire.STAGE_UNSPECIFIED,
        command=value.command,
        pending_cancel=cancel_message(value.key.attempt_key, value.cancel) if value.cancel is not None else None,
        secrets=value.secrets,
        service_cursors=value.service_cursors,
        action=action_message(value.action) if value.action is not None else None,
    )

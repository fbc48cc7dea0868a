"""The check of an action's fields against the limits of the contract. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.unknown_fields import UnknownFieldSet

from agent.domain.session_state import Feature
from agent.protocol import translate

if TYPE_CHECKING:
    from agent.protocol.wire import agent_pb2 as wire

# Limits of an action, in bytes: its id, its commands, and its variables with its secrets.
MAX_ID, MAX_COMMANDS, MAX_ENV = 256, 512 << 10, 512 << 10


def action_problem(action: wire.Action) -> str:
    """Return what is wrong with the fields of an action, or "". The action is the first attempt of its session."""
    name = f"action {action.action_id[:MAX_ID]!r}"
    if not 1 <= len(action.action_id.encode()) <= MAX_ID:
        return f"the action id has {len(action.action_id.encode())} bytes, allowed are 1 to {MAX_ID}"
    if action.attempt < 1:
        return f"{name} has attempt {action.attempt}, the first attempt is 1"
    if action.claim != 1:
        return f"{name} has claim {action.claim}, a new attempt has claim 1"
    if not action.image.strip() or not action.commands:
        return f"{name} has no {'commands' if action.image.strip() else 'image'}"
    if (size := sum(len(each.encode()) for each in action.commands)) > MAX_COMMANDS:
        return f"{name} has {size} bytes of commands, allowed are {MAX_COMMANDS}"
    values = [*action.env.items(), *action.secrets.items()]
    if (size := sum(len(f"{name}{value}".encode()) for name, value in values)) > MAX_ENV:
        return f"{name} has {size} bytes of env and secrets, allowed are {MAX_ENV}"
    if action.HasField("timeout") and translate.seconds(action.timeout) <= 0:
        return f"{name} has a timeout of {translate.seconds(action.timeout):g} s, allowed is more than 0"
    return ""


def feature_problem(action: wire.Action) -> str:
    """Return which field of an action needs a feature, or "". The tool names no feature that a version knows."""
    names = {each.value for each in Feature}
    for field, _ in action.ListFields():
        if field.name in names:
            return f"action {action.action_id[:MAX_ID]!r} has the field {field.name}, the agent named no such feature"
    if unknown := UnknownFieldSet(action):
        number = unknown[0].field_number
        return f"action {action.action_id[:MAX_ID]!r} has the unknown field {number}, the agent named no feature for it"
    return ""

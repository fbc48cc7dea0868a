"""Translation between protobuf messages and domain objects, in both directions.

All functions are pure. The agent reads actions and writes events. The local scheduler (`agent.local_scheduler`) uses
the other direction. Every incoming field is checked here, so that no other module receives a value that the domain
cannot hold. The error for an invalid field names the field and the allowed values. The error ends one action, never the
stream. Every outgoing object can be encoded: text for people is truncated and made valid UTF-8.

A function with the suffix `_message` returns a protobuf message. The function of the same name without this suffix
reads a protobuf message.
"""

from agent.protocol.translate.agents import features, health, health_message, session_state, session_state_message
from agent.protocol.translate.events import Numbered, event, event_message
from agent.protocol.translate.fields import duration, human_text, key, seconds
from agent.protocol.translate.files import UploadEnd, part, part_message, upload_header_message
from agent.protocol.translate.requests import action, action_message, cancel, cancel_message, resume, resume_message

__all__ = [
    "Numbered",
    "UploadEnd",
    "action",
    "action_message",
    "cancel",
    "cancel_message",
    "duration",
    "event",
    "event_message",
    "features",
    "health",
    "health_message",
    "human_text",
    "key",
    "part",
    "part_message",
    "resume",
    "resume_message",
    "seconds",
    "session_state",
    "session_state_message",
    "upload_header_message",
]

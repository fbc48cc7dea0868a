"""The wire and the domain, both ways, and nothing else.

Pure functions without state. The agent reads actions and writes events; the scheduler for one machine (`agent.local`)
uses the other direction. What arrives is checked here once, so that nothing behind this border meets a value that the
domain cannot hold: the error names the field and what is allowed, and ends that action only, never the stream. What
leaves can always be encoded: text for people is cut and made valid UTF-8.

Functions that end in `_message` write to the wire, those of the same name without it read.
"""

from agent.protocol.translate.agents import health, health_message, session_state, session_state_message
from agent.protocol.translate.events import Numbered, event, event_message
from agent.protocol.translate.fields import duration, key, seconds, words
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
    "health",
    "health_message",
    "key",
    "part",
    "part_message",
    "resume",
    "resume_message",
    "seconds",
    "session_state",
    "session_state_message",
    "upload_header_message",
    "words",
]

"""What is done with each message of the scheduler.

One `Receiver` lives as long as one stream. It never waits: the reader that drives it must not, or both ends could stand
in a write and nobody read. Whatever it is told, the stream goes on: what cannot be used is reported or counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog

from agent.domain.errors import ActionFailed
from agent.protocol import translate

if TYPE_CHECKING:
    from agent.domain.actions import Action, Cancel, Key
    from agent.domain.session_state import Resume
    from agent.protocol.wire import agent_pb2 as wire
    from agent.scheduler.stream.outbox import Outbox
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class Handlers(Protocol):
    """Who acts on what the scheduler says. Every method returns at once."""

    def registered(self, interval: float, grace: float) -> None:
        """A stream was registered: health goes every `interval` seconds, a lost agent is waited for `grace` seconds."""

    def action(self, action: Action) -> None:
        """Run this. May be a repeat of what runs already; opens its outlet before it returns."""

    def action_failed(self, key: Key, failure: ActionFailed) -> None:
        """An action (or where to resume one) could not be read: answer with this as a finished outcome."""

    def cancel(self, attempt_key: tuple[str, int], cancel: Cancel) -> None:
        """End this session; it may be unknown."""

    def resume(self, resume: Resume) -> None:
        """Go on with this session; its outlet already stands at the right event."""

    def discard(self, key: Key, claimed_by_other: bool, message: str) -> None:
        """Drop this session; its outlet is closed already."""

    def drain(self, message: str) -> None:
        """Take nothing new and leave when the sessions are done."""


class Receiver:
    """Gives messages to the outbox and the handlers."""

    def __init__(self, outbox: Outbox, handlers: Handlers, metrics: Metrics) -> None:
        self.outbox = outbox
        self.handlers = handlers
        self.metrics = metrics

    def receive(self, message: wire.SchedulerMessage) -> None:
        """Act on one message; a fault of a handler concerns that message only."""
        kind = message.WhichOneof("message")
        self.metrics.stream_messages.labels("received", kind or "unknown").inc()
        try:
            self.dispatch(message)
        except Exception:
            self.metrics.internal_errors.labels("stream").inc()
            log.exception("a message of the scheduler could not be dealt with", kind=kind)

    def dispatch(self, message: wire.SchedulerMessage) -> None:
        """Call whom the message concerns; kinds of a newer version are ignored."""
        match message.WhichOneof("message"):
            case "ack":
                # Without an action it answers a health message.
                if message.ack.action_id:
                    self.outbox.ack(translate.key(message.ack), message.ack.seq)
                else:
                    self.metrics.health_answered.set_to_current_time()
            case "action":
                self.action(message.action)
            case "cancel":
                attempt_key = (message.cancel.action_id, message.cancel.attempt)
                self.handlers.cancel(attempt_key, translate.cancel(message.cancel))
            case "resume":
                self.resume(message.resume)
            case "discard":
                discard = message.discard
                key = translate.key(discard)
                self.outbox.discard(key)
                self.handlers.discard(key, discard.claimed_by_other, discard.message)
            case "drain":
                self.handlers.drain(message.drain.message)

    def action(self, message: wire.Action) -> None:
        """Start what can be read, answer what cannot."""
        try:
            action = translate.action(message)
        except ActionFailed as failure:
            log.warning("an action cannot be read", action=message.action_id[:256], reason=failure.message)
            self.handlers.action_failed(translate.key(message), failure)
        else:
            self.handlers.action(action)

    def resume(self, message: wire.Resume) -> None:
        """Let a session go on."""
        try:
            resume = translate.resume(message)
        except ActionFailed as failure:
            log.warning("where to resume cannot be read", action=message.action_id[:256], reason=failure.message)
            self.handlers.action_failed(translate.key(message), failure)
        else:
            if self.outbox.resume(resume):
                self.handlers.resume(resume)

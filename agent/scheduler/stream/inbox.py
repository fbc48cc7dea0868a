"""What the agent does with each message of the scheduler.

An `Inbox` never waits, because the reader of the stream calls it. If the reader waited, both ends could block in a
write that the other end does not read. No message ends the stream. A message that cannot be used is logged and counted.
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
    """The application's answers to the scheduler's messages. Every method returns at once."""

    def registered(self, interval: float, grace: float) -> None:
        """Handle an acknowledged registration. `interval`: seconds between two health messages.

        `grace`: seconds that the scheduler keeps the sessions of a lost agent.
        """

    def action(self, action: Action) -> None:
        """Run an action. Before the handler returns, it must open the outbox of the action's session, which keeps the
        session's events for the scheduler.


        It is possible that the scheduler has sent the same action before.
        """

    def action_failed(self, key: Key, failure: ActionFailed) -> None:
        """Send `failure` as the outcome of an attempt, because its Action or Resume message could not be read."""

    def cancel(self, attempt_key: tuple[str, int], cancel: Cancel) -> None:
        """Stop a session. It is possible that the agent does not have this session."""

    def resume(self, resume: Resume) -> None:
        """Continue a session. Its outbox is already at the resume point."""

    def discard(self, key: Key, claimed_by_other: bool, message: str) -> None:
        """Drop a session. Its outbox is already closed."""

    def drain(self, message: str) -> None:
        """Drain this agent: accept no new action, and exit when the sessions have ended or are handed over."""


class Inbox:
    """Hands the messages of the scheduler to the outbox and the handlers. It lives as long as the connection."""

    def __init__(self, outbox: Outbox, handlers: Handlers, metrics: Metrics) -> None:
        self.outbox = outbox
        self.handlers = handlers
        self.metrics = metrics

    def handle(self, message: wire.SchedulerMessage) -> None:
        """Act on one message. An error in a handler is logged and affects only this message."""
        kind = message.WhichOneof("message")
        self.metrics.stream_messages.labels("received", kind or "unknown").inc()
        try:
            self.dispatch(message)
        except Exception:
            self.metrics.internal_errors.labels("stream").inc()
            log.exception("a message of the scheduler could not be handled", kind=kind)

    def dispatch(self, message: wire.SchedulerMessage) -> None:
        """Call the handler of one message. Kinds of a newer version are ignored."""
        match message.WhichOneof("message"):
            case "ack":
                self.ack(message.ack)
            case "action":
                self.action(message.action)
            case "cancel":
                attempt_key = (message.cancel.action_id, message.cancel.attempt)
                self.handlers.cancel(attempt_key, translate.cancel(message.cancel))
            case "resume":
                self.resume(message.resume)
            case "discard":
                key = translate.key(message.discard)
                self.outbox.discard(key)
                self.handlers.discard(key, message.discard.claimed_by_other, message.discard.message)
            case "drain":
                self.handlers.drain(message.drain.message)

    def ack(self, message: wire.Ack) -> None:
        # An Ack without an action answers a Health message.
        if message.action_id:
            self.outbox.ack(translate.key(message), message.seq)
        else:
            self.metrics.health_answered.set_to_current_time()

    def action(self, message: wire.Action) -> None:
        try:
            action = translate.action(message)
        except ActionFailed as failure:
            log.warning("an action cannot be read", action=message.action_id[:256], reason=failure.message)
            self.handlers.action_failed(translate.key(message), failure)
        else:
            self.handlers.action(action)

    def resume(self, message: wire.Resume) -> None:
        try:
            resume = translate.resume(message)
        except ActionFailed as failure:
            log.warning("a resume point cannot be read", action=message.action_id[:256], reason=failure.message)
            self.handlers.action_failed(translate.key(message), failure)
        else:
            if self.outbox.resume(resume):
                self.handlers.resume(resume)

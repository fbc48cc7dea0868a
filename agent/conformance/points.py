"""The points of the contract that `sealci-agent conformance` checks. A point never changes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One rule of the contract.

    `section` is a part of agent.proto. `anchor` is a heading of docs/scheduler-protocol.md.
    """

    name: str
    rule: str
    section: str
    anchor: str

    @property
    def place(self) -> str:
        """Where the rule stands in the contract."""
        return f"agent.proto, {self.section}; docs/scheduler-protocol.md#{self.anchor}"


LIFE, DELIVERY, RESUMPTION, UPLOADS = "life-of-a-stream", "delivery", "resume", "uploads"

TOKEN = Point("token", "A call without the token ends with UNAUTHENTICATED.", "Authentication", "security")
ANSWER = Point("register: answer", "Registered or Refused answers Register.", "Life of a stream", LIFE)
FIRST = Point("register: first", "A stream that does not begin with Register is not served.", "message Register", LIFE)
VERSION = Point(
    "register: version", "Refused PROTOCOL_VERSION answers an unknown protocol version.", "message Refused", LIFE
)
REPLACED = Point(
    "register: replaced", "A new Register of the same pod ends the older stream.", "message Register", LIFE
)
UNKNOWN_FIELDS = Point(
    "unknown fields", "Unknown fields, messages and events are ignored.", "Compatibility", "compatibility"
)
HEALTH = Point("health: answer", "An Ack without an action id answers Health.", "message Health", "liveness")
NOT_READY = Point(
    "action: ready", "An action goes only to an agent whose Health is READY.", "message Health", "liveness"
)
SLOTS = Point("action: slots", "An action goes only to an agent with a free slot.", "message Health", "liveness")
SENT = Point("action: sent", "A queued action goes to an agent that is ready.", "message Action", LIFE)
FIELDS = Point("action: fields", "The fields of an action are within their limits.", "message Action", LIFE)
FEATURES = Point(
    "action: features", "An action goes only to an agent that has named its features.", "message Register", "features"
)
REJECTED = Point("rejected: again", "A rejected action goes to an agent again.", "message Rejected", DELIVERY)
STORED = Point("ack: stored", "Each event is stored and acknowledged.", "Delivery", DELIVERY)
ACK_SEQ = Point("ack: number", "No number is acknowledged that was not sent.", "message Ack", DELIVERY)
ACK_KEY = Point("ack: session", "An Ack names the action, attempt and claim of the events.", "message Ack", DELIVERY)
DUPLICATE = Point("event: duplicate", "A repeated event is acknowledged and not applied again.", "Delivery", DELIVERY)
GAP = Point("event: gap", "No event is stored before the events that precede it.", "Delivery", DELIVERY)
RESUME = Point("resume: own", "Resume names the last stored event.", "message Resume", RESUMPTION)
ADOPTED = Point("resume: adopted", "Resume has all its fields for an adopted session.", "message Resume", RESUMPTION)
FENCED = Point(
    "claim: event",
    "An event of a lower claim is answered with Discard and is not stored.",
    "message Discard",
    RESUMPTION,
)
UPLOAD = Point("upload: receipt", "The receipt has the numbers of UploadEnd.", "rpc UploadArtifacts", UPLOADS)
REPEATED = Point("upload: repeated", "A repeated call replaces the files.", "rpc UploadArtifacts", UPLOADS)
HASH = Point("upload: sha256", "A file with a wrong sha256 is not kept.", "message FileEnd", UPLOADS)
PATH = Point("upload: path", "A path that leaves the workspace is refused.", "message FileStart", UPLOADS)
INCOMPLETE = Point("upload: end", "A call without UploadEnd gets no receipt.", "message UploadEnd", UPLOADS)
STALE = Point("upload: claim", "An upload of a lower claim is refused.", "rpc UploadArtifacts", UPLOADS)
FINISHED = Point("finished", "The outcome is acknowledged.", "message Event", DELIVERY)
ENDED = Point("discard: ended", "Discard answers a session whose attempt has ended.", "message Discard", RESUMPTION)
UNKNOWN = Point(
    "discard: unknown",
    "Discard, or Resume from 0, answers a session that the scheduler does not know.",
    "message SessionState",
    RESUMPTION,
)
CANCEL = Point("cancel", "A cancellation reaches the agent.", "message Cancel", LIFE)
DRAINING = Point("drain: action", "No action goes to an agent whose Health is DRAINING.", "message Health", "liveness")
LEAVE = Point("drain: end", "The stream ends when the agent has ended its side.", "Life of a stream", LIFE)

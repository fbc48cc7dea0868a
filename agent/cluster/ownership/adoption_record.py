"""The annotation that counts how many agents ended soon after they had adopted a session. Pure.

A session can end every agent that reads its log, by a fault that is not known yet. Without the count, such a session
would move from agent to agent for as long as its pod lives. Each claim writes the annotation.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.domain.json import Object

ANNOTATION = "sealci.dev/adoption"
# Time after the claim of a session. An agent that ends within this time, without a hand-over, counts as lost.
SOON = timedelta(seconds=120)
# Number of lost agents in a row after which the next agent gives the session up.
MOST_LOST = 5


def read(pod: Object) -> tuple[datetime | None, int]:
    """Return the time of the last claim and the number of lost agents. None and 0 if there was no claim."""
    try:
        record = json.loads(pod["metadata"]["annotations"][ANNOTATION])
        at, lost = datetime.fromisoformat(record["at"]), int(record["lost"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None, 0
    return (at, max(0, lost)) if at.tzinfo else (None, 0)


def next_record(pod: Object, now: datetime, *, left: bool) -> str:
    """Return the annotation of a claim at `now`. `left`: the former agent handed its sessions over and did not die."""
    at, lost = read(pod)
    if not left:
        lost = lost + 1 if at is not None and now - at < SOON else 0
    return json.dumps({"at": now.isoformat(timespec="seconds"), "lost": lost}, separators=(",", ":"))


def refusal(pod: Object) -> str:
    """Return why the agent that has claimed the session must give it up. "" if this agent can continue the session."""
    _, lost = read(pod)
    if lost < MOST_LOST:
        return ""
    return f"{lost} agents in a row ended within {SOON.seconds} s after they had adopted this session"

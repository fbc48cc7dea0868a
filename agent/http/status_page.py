"""The status page: one page of HTML that shows the state of this replica and which actions it runs.

All functions are pure, and `page` makes an HTML document of a `Snapshot`. The page needs no script and no other file.
The page shows names, stages, times and outcomes, but never commands, variables or logs. In messages, secrets are masked
as in the events that the scheduler gets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from agent.domain.errors import Stage
from agent.domain.outcome import Result
from agent.domain.session_state import Readiness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.domain.outcome import Outcome
    from agent.domain.session_state import Health
    from agent.execution.session import Session

# Seconds until the browser loads the page again.
REFRESH = 5
# Maximum number of characters of a message that are shown.
MAX_MESSAGE = 500
# The functions of this module escape every text that they put into the template, because a template escapes nothing.
TEMPLATE = Template(files("agent.http").joinpath("status.html").read_text("utf-8"))
OUTCOME_COLOURS = {Result.SUCCEEDED: "good", Result.FAILED: "bad", Result.CANCELLED: "warn"}
HEALTH_COLOURS = {Readiness.READY: "good", Readiness.DRAINING: "warn", Readiness.DEGRADED: "bad"}


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session. `seconds` is the age of the session, `stages` the seconds of each stage so far, in order.

    `services` holds pairs of a service's name and state.
    """

    action: str
    attempt: int
    image: str
    stage: str
    seconds: float
    stages: Sequence[tuple[str, float]]
    outcome: Outcome | None = None
    services: Sequence[tuple[str, str]] = ()
    environment_class: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the page shows. `not_ready` is why the agent accepts no action now, "" if it accepts actions.

    `warm`: the settings name warm pods.
    """

    version: str
    pool: str
    agent_id: str
    health: Health
    not_ready: str
    finished: int
    running: Sequence[SessionRow]
    recent: Sequence[SessionRow]
    classes: Sequence[str] = ()
    warm: bool = False


def session_row(session: Session) -> SessionRow:
    """Return what the page shows of a session now."""
    now = time.monotonic()
    reporter, outcome = session.reporter, session.progress.outcome
    stages = dict(reporter.stage_seconds)
    stages.pop(Stage.ADMISSION, None)
    if outcome is None:
        stages[reporter.stage] = stages.get(reporter.stage, 0.0) + now - reporter.stage_began
    return SessionRow(
        action=session.key.action_id,
        attempt=session.key.attempt,
        image=session.action.image,
        stage=reporter.stage.value,
        seconds=now - session.began,
        stages=tuple((stage.value, seconds) for stage, seconds in stages.items()),
        outcome=outcome,
        services=tuple((each.name, each.state.value) for each in session.services.reported.values()),
        environment_class=session.action.environment_class,
    )


def page(snapshot: Snapshot) -> str:
    """Return the HTML document that shows the snapshot."""
    health = snapshot.health
    return TEMPLATE.substitute(
        refresh=REFRESH,
        state=escape(state_text(snapshot)),
        version=escape(snapshot.version),
        pool=escape(snapshot.pool),
        agent_id=escape(snapshot.agent_id),
        facts="".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts(snapshot, health)),
        running=session_list(snapshot.running, "No action runs."),
        recent=session_list(snapshot.recent, "No action has ended since the start."),
    ).rstrip("\n")


def state_text(snapshot: Snapshot) -> str:
    return snapshot.not_ready or snapshot.health.status.value


def facts(snapshot: Snapshot, health: Health) -> list[tuple[str, str]]:
    """Return the name and the HTML of each fact about the replica."""
    colour = "warn" if snapshot.not_ready else HEALTH_COLOURS[health.status]
    return [
        ("health", coloured(colour, state_text(snapshot))),
        ("cluster", coloured("good", "reachable") if health.cluster_reachable else coloured("bad", "does not answer")),
        ("slots", f"{health.running} of {health.slots}{meter(health)}"),
        ("finished", f"{snapshot.finished}"),
        ("orphans", coloured("bad" if health.remains else "good", f"{health.remains}")),
        *([("classes", escape(", ".join(snapshot.classes)))] if snapshot.classes else []),
        *([("warm pods", warm_pods(health))] if snapshot.warm else []),
    ]


def warm_pods(health: Health) -> str:
    """Return the number of waiting warm pods for each image, class and size."""
    waiting = []
    for each in health.warm:
        parts = [each.cpu, each.memory, *([f"class {each.environment_class}"] if each.environment_class else [])]
        waiting.append(f"{each.idle} of {escape(each.image)} ({escape(', '.join(parts))})")
    return "<br>".join(waiting) or coloured("dim", "none waits")


def coloured(colour: str, text: str) -> str:
    return f'<span class="{colour}">{escape(text)}</span>'


def meter(health: Health) -> str:
    """Return a bar that shows how many slots are in use."""
    return f'<meter min="0" max="{max(1, health.slots)}" value="{health.running}">{health.running}</meter>'


def session_list(sessions: Sequence[SessionRow], if_empty: str) -> str:
    if not sessions:
        return f'<p class="dim">{if_empty}</p>'
    return f"<ul>{''.join(map(session_item, sessions))}</ul>"


def session_item(session: SessionRow) -> str:
    attempt = f' <span class="dim">attempt {session.attempt}</span>' if session.attempt > 1 else ""
    stages = " · ".join(f"{escape(name)} {duration(seconds)}" for name, seconds in session.stages)
    services = " · ".join(f"{escape(name)} {escape(state)}" for name, state in session.services)
    services = f'<p class="dim">services: {services}</p>' if services else ""
    named_class = f" · class {escape(session.environment_class)}" if session.environment_class else ""
    outcome = session.outcome
    state = coloured("run", session.stage)
    why = ""
    if outcome is not None:
        colour = OUTCOME_COLOURS[outcome.result]
        state = coloured(colour, outcome.result.value)
        text = outcome_text(outcome)
        why = f'<p class="{colour}">{escape(text)}</p>' if text else ""
    return (
        f"<li><b>{escape(session.action)}{attempt}</b><time>{state} {duration(session.seconds)}</time>"
        f'<p class="dim">{escape(session.image)}{named_class}</p><p class="dim">{stages}</p>{services}{why}</li>'
    )


def outcome_text(outcome: Outcome) -> str:
    """Return reason, exit code and message in one line. "" for a success without a message."""
    reason = outcome.reason.value if outcome.reason else ""
    code = f" (exit code {outcome.exit_code})" if outcome.exit_code else ""
    return f"{reason}{code}{': ' if reason and outcome.message else ''}{outcome.message[:MAX_MESSAGE]}"


def duration(seconds: float) -> str:
    """Return a number of seconds as text for people."""
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}\N{NO-BREAK SPACE}h {minutes}\N{NO-BREAK SPACE}min"
    return f"{minutes}\N{NO-BREAK SPACE}min {rest}\N{NO-BREAK SPACE}s"

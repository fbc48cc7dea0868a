"""The status page: how this replica is and what it does, as one page of HTML for whoever opens its port.

Pure: what is known in, a document out. It is drawn on the server, needs no script and no other file, and shows names,
stages, times and outcomes: no command, no variable, no log, and messages only as the scheduler gets them, masked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from agent.domain.errors import Stage
from agent.domain.outcome import Result
from agent.domain.session_state import Readiness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.domain.outcome import Outcome
    from agent.domain.session_state import Health
    from agent.execution.session import Session

REFRESH = 5
STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--dim:#667080;--line:#d8dee6;--paper:#f6f8fa;--card:#fff;
--good:#1a7f37;--bad:#c62f2f;--warn:#9a6700;--run:#0b6bcb}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#98a3b1;--line:#30363d;--paper:#0d1117;--card:#161b22;
--good:#3fb950;--bad:#ff7b72;--warn:#d9a426;--run:#6cb6ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header span{overflow-wrap:anywhere;min-width:0}
header{display:flex;flex-wrap:wrap;gap:.25rem 1rem;align-items:baseline}
h1{font-size:1.3rem;margin:0}h2{font-size:1rem;margin:1.6rem 0 .5rem}
.dim{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}.run{color:var(--run)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.5rem;margin:1rem 0 0;padding:0}
.facts div,li{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem}
dt{color:var(--dim);font-size:.85rem}dd{margin:0;font-size:1.15rem;font-weight:600;overflow-wrap:anywhere}
ul{list-style:none;margin:0;padding:0;display:grid;gap:.5rem}
li{display:grid;grid-template-columns:1fr auto;gap:.1rem 1rem}
li b{overflow-wrap:anywhere}li p{grid-column:1/-1;margin:0;font-size:.9rem;overflow-wrap:anywhere}
time{white-space:nowrap;font-variant-numeric:tabular-nums}
meter{width:100%;height:.6rem}
"""
COLOURS = {Result.SUCCEEDED: "good", Result.FAILED: "bad", Result.CANCELLED: "warn"}
STATES = {Readiness.READY: "good", Readiness.DRAINING: "warn", Readiness.DEGRADED: "bad"}


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session. `seconds` is its whole age, `stages` the seconds of each stage so far, in order."""

    action: str
    attempt: int
    image: str
    stage: str
    seconds: float
    stages: Sequence[tuple[str, float]]
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is shown. `not_ready` is why no action is taken now, "" when one is."""

    version: str
    pool: str
    agent_id: str
    health: Health
    not_ready: str
    finished: int
    running: Sequence[SessionRow]
    lately: Sequence[SessionRow]


def seen(session: Session) -> SessionRow:
    """Return what is shown of a session now."""
    now = time.monotonic()
    stages = dict(session.stage_seconds)
    stages.pop(Stage.ADMISSION, None)
    if session.outcome is None:
        stages[session.stage] = stages.get(session.stage, 0.0) + now - session.stage_began
    return SessionRow(
        action=session.key.action_id,
        attempt=session.key.attempt,
        image=session.action.image,
        stage=session.stage.value,
        seconds=now - session.began,
        stages=tuple((stage.value, seconds) for stage, seconds in stages.items()),
        outcome=session.outcome,
    )


def page(known: Snapshot) -> str:
    """Return the document."""
    health = known.health
    state = known.not_ready or health.status.value
    colour = "warn" if known.not_ready else STATES[health.status]
    facts = [
        ("health", f'<span class="{colour}">{escape(state)}</span>'),
        ("cluster", '<span class="good">reachable</span>' if health.cluster_reachable else answerless()),
        ("slots", f"{health.running} of {health.slots}{meter(health)}"),
        ("finished", f"{known.finished}"),
        ("remains", f'<span class="{"bad" if health.remains else "good"}">{health.remains}</span>'),
    ]
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH}"><title>SealCI agent: {escape(state)}</title>'
        f"<style>{STYLE}</style></head><body>"
        f'<header><h1>SealCI agent</h1><span class="dim">{escape(known.version)} · pool {escape(known.pool)}'
        f" · {escape(known.agent_id)}</span></header>"
        f'<dl class="facts">{cards}</dl>'
        f"<h2>Running</h2>{rows(known.running, 'No action runs.')}"
        f"<h2>Lately</h2>{rows(known.lately, 'None has ended since the start.')}"
        "</body></html>"
    )


def answerless() -> str:
    """Say that the cluster is away."""
    return '<span class="bad">does not answer</span>'


def meter(health: Health) -> str:
    """Draw how full the agent is."""
    return f'<meter min="0" max="{max(1, health.slots)}" value="{health.running}">{health.running}</meter>'


def rows(sessions: Sequence[SessionRow], nothing: str) -> str:
    """Return sessions as a list."""
    if not sessions:
        return f'<p class="dim">{nothing}</p>'
    return f"<ul>{''.join(map(row, sessions))}</ul>"


def row(session: SessionRow) -> str:
    """Return one session."""
    outcome = session.outcome
    attempt = f' <span class="dim">attempt {session.attempt}</span>' if session.attempt > 1 else ""
    stages = " · ".join(f"{escape(name)} {clock(seconds)}" for name, seconds in session.stages)
    if outcome is None:
        state = f'<span class="run">{escape(session.stage)}</span>'
        why = ""
    else:
        state = f'<span class="{COLOURS[outcome.result]}">{outcome.result.value}</span>'
        reason = outcome.reason.value if outcome.reason else ""
        code = f" (exit code {outcome.exit_code})" if outcome.exit_code else ""
        told = f"{reason}{code}{': ' if reason and outcome.message else ''}{outcome.message[:500]}"
        why = f'<p class="{COLOURS[outcome.result]}">{escape(told)}</p>' if told else ""
    return (
        f"<li><b>{escape(session.action)}{attempt}</b><time>{state} {clock(session.seconds)}</time>"
        f'<p class="dim">{escape(session.image)}</p><p class="dim">{stages}</p>{why}</li>'
    )


def clock(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}\N{NO-BREAK SPACE}h {minutes}\N{NO-BREAK SPACE}min"
        if hours
        else f"{minutes}\N{NO-BREAK SPACE}min {rest}\N{NO-BREAK SPACE}s"
    )

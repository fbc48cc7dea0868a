"""A pipeline on a terminal as a living tree: actions under what they need, each with its stage, time and last lines.

An action that has ended is one line; so much of the log is shown as the window has room for. A pipeline of a single
action is no tree to look at: its lines stay on the screen, above one line that says how far it is. What is drawn goes
with the end; the table and the blocks of `closing` stay.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from agent.console import final_summary
from agent.console.formatting import RESULT_COLOURS, amount, count, duration, rate, readable
from agent.console.log_lines import Lines
from agent.console.run_report import Report
from agent.console.view import View
from agent.domain.errors import Stage
from agent.domain.events import Source
from agent.domain.outcome import Result
from agent.pipeline import events

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, RenderableType

    from agent.console.run_report import ActionReport
    from agent.pipeline.events import PipelineEvent, Transfer

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MARKS = {Result.SUCCEEDED: "✔", Result.FAILED: "✘", Result.CANCELLED: "⊘"}
ASCII = str.maketrans("✔✘⊘·│━╺", "+x-.|=-")
BAR = 24
MOST_LINES = 12
PERIOD = 0.1


class LiveView(View):
    """Draws anew at most ten times a second, whatever comes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.report = Report()
        self.recent: dict[str, deque[str]] = {}
        self.lines: dict[str, Lines] = {}
        self.live: Live | None = None
        self.drawn = 0.0

    @property
    def single(self) -> bool:
        """Whether there is one action only."""
        return len(self.report.actions) == 1

    def show(self, event: PipelineEvent) -> None:
        """Take the event in, and draw if it is time to."""
        self.report.add(event)
        name = event.action
        match event.body:
            case events.LogText(data=data, source=source):
                self.write(name, self.lines.setdefault(name, Lines()).feed(data), source)
            case events.ActionEnded():
                self.write(name, self.lines.setdefault(name, Lines()).flush(), Source.COMMANDS)
                self.recent.pop(name, None)
        if time.monotonic() - self.drawn >= PERIOD:
            self.tick()

    def write(self, name: str, lines: list[str], source: Source) -> None:
        """Keep lines to draw; those of a single action are written at once, and stay."""
        if not lines:
            return
        style = "" if source is Source.COMMANDS else "dim"
        if self.single and source is not Source.SETUP:  # that stands in the block of its failure
            self.begun().console.print(Text("\n").join(styled(line, style) for line in lines), soft_wrap=True)
        elif not self.single:
            self.recent.setdefault(name, deque(maxlen=MOST_LINES)).extend(lines)

    def begun(self) -> Live:
        """Return the part of the screen that is drawn anew."""
        if self.live is None:
            self.live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
            self.live.start()
        return self.live

    def tick(self) -> None:
        """Draw."""
        if not self.report.actions:
            return
        self.drawn = time.monotonic()
        self.begun().update(self.picture(time.time()), refresh=True)

    def hold(self) -> None:
        """Wipe what is drawn."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def close(self, report: Report) -> None:
        """Put the end in the place of what was drawn."""
        self.hold()
        final_summary.close(self.console, report)

    # ---- the picture

    def picture(self, now: float) -> RenderableType:
        """Return what is drawn at a time (seconds since the epoch)."""
        transfers = self.gauge()
        shown, hidden = self.chosen()
        room = self.room(shown)
        if self.single:
            return Group(*(self.entry(action, now, transfers, 0) for action in shown))
        tree = Tree(self.title(now), guide_style="dim")
        nodes: dict[str, Tree] = {}
        for action in self.ordered(shown):
            parent = self.parent(action, nodes)
            others = [need for need in action.needs if need != parent] if parent or len(action.needs) > 1 else []
            nodes[action.name] = nodes.get(parent, tree).add(self.entry(action, now, transfers, room, others))
        if hidden:
            tree.add(Text(f"{hidden} more", "dim"))
        return tree

    def title(self, now: float) -> Text:
        """Say how the pipeline stands."""
        states = [each.outcome.result.value if each.outcome else "" for each in self.report.actions.values()]
        ended = [f"{states.count(each.value)} {each.value}" for each in Result if each.value in states]
        running = sum(1 for each in self.report.actions.values() if not each.outcome and each.attempts)
        counts = ", ".join([*ended, *([f"{running} running"] if running else [])])
        return Text.assemble(
            (self.report.name, "bold"), (f"  {duration(max(0.0, now - self.report.started))}  {counts}", "dim")
        )

    def chosen(self) -> tuple[list[ActionReport], int]:
        """Return the actions that the window has room for, those of interest first, and how many are left out."""
        every = list(self.report.actions.values())
        height = max(4, self.console.height - 3)
        if len(every) <= height:
            return every, 0
        ranked = sorted(every, key=interest)[: height - 1]
        names = {each.name for each in ranked}
        return [each for each in every if each.name in names], len(every) - len(ranked)

    def room(self, shown: list[ActionReport]) -> int:
        """Return how many lines of log each running action has."""
        running = sum(1 for each in shown if each.stage is not None)
        free = self.console.height - len(shown) - 3
        return max(0, min(MOST_LINES, free // running)) if running else 0

    def ordered(self, shown: list[ActionReport]) -> list[ActionReport]:
        """Return the actions, each behind what it needs."""
        done: dict[str, ActionReport] = {}
        waiting = list(shown)
        names = {each.name for each in shown}
        while waiting:
            ready = [each for each in waiting if all(need in done or need not in names for need in each.needs)]
            for each in ready or waiting:
                done[each.name] = each
            waiting = [each for each in waiting if each.name not in done]
        return list(done.values())

    def parent(self, action: ActionReport, nodes: dict[str, Tree]) -> str:
        """Return the action under which another stands: of those it needs the one that comes last."""
        return next((name for name in reversed(nodes) if name in action.needs), "")

    def entry(
        self,
        action: ActionReport,
        now: float,
        transfers: Mapping[str, Transfer],
        room: int,
        others: Sequence[str] = (),
    ) -> RenderableType:
        """Return one action: its line, and the end of its log while it runs."""
        head = self.head(action, now, transfers.get(action.name))
        if others:
            head.append(f"  needs {', '.join(others)} too", "dim")
        head.no_wrap, head.overflow = True, "ellipsis"
        if self.console.encoding not in ("utf-8", "utf8"):
            head.plain = head.plain.translate(ASCII)
        recent = list(self.recent.get(action.name, ()))[-room:] if room and action.stage is not None else []
        return Group(head, *(gutter(line) for line in recent))

    def head(self, action: ActionReport, now: float, transfer: Transfer | None) -> Text:
        """Say in one line how an action stands."""
        if action.outcome is not None:
            return ended(action)
        if not action.attempts:
            return Text(f"· {action.name}  waiting", "dim")
        frame = SPINNER[int(now * 10) % len(SPINNER)]
        stage = action.stage.value if action.stage else "starting"
        head = Text.assemble((frame, "cyan"), " ", (action.name, "bold"), "  ", (stage, "cyan"))
        head.append(f" {duration(max(0.0, now - action.since))}", "dim")
        if action.attempts > 1:
            head.append(f"  attempt {action.attempts}", "yellow")
        if action.stage is Stage.ARTIFACTS and transfer is not None:
            head.append("  ").append(copying(transfer, now - action.since))
        elif action.stage is Stage.COMMANDS and action.command:
            first = action.text_of(action.command).strip().partition("\n")[0]
            of = f"({action.command}/{len(action.commands)}) " if len(action.commands) > 1 else ""
            head.append(f"  {of}$ {first}")
        elif action.detail:
            head.append(f"  {action.detail}", "dim")
        return head


def interest(action: ActionReport) -> int:
    """Return how early an action is left out of a window that is too small."""
    if action.outcome is None:
        return 0 if action.attempts else 2
    return 1 if action.outcome.result is Result.FAILED else 3


def ended(action: ActionReport) -> Text:
    """Return the one line of an action that has ended."""
    outcome = action.outcome
    if outcome is None:
        raise AssertionError("it has not ended")
    text = Text.assemble((MARKS[outcome.result], RESULT_COLOURS[outcome.result]), " ", (action.name, "bold"))
    if action.seconds:
        text.append(f"  {duration(action.seconds)}")
    if outcome.result is not Result.SUCCEEDED:
        text.append(f"  {outcome.message or action.why}", RESULT_COLOURS[outcome.result])
        return text
    stages = [
        f"{final_summary.STAGES[each]} {duration(took)}"
        for each, took in action.stages.items()
        if each in final_summary.STAGES
    ]
    text.append(f"  {' · '.join(stages)}", "dim")
    if files := final_summary.collected(action):
        text.append(f"  {files}", "dim")
    return text


def copying(transfer: Transfer, seconds: float) -> Text:
    """Return the bar of the file that is being copied, and how much and how fast all of them came so far."""
    filled = BAR * transfer.done // transfer.size if transfer.size else 0
    text = Text.assemble(("━" * filled, "green"), ("━" * (BAR - filled), "dim"), "  ")
    text.append(f"{count(transfer.files, 'file')}, {amount(transfer.sent)}  {rate(transfer.sent, seconds)}")
    if transfer.path:
        text.append(f"  {readable(transfer.path)}", "dim")
    return text


def gutter(line: str) -> Text:
    """Return a line of a log under its action."""
    text = Text.assemble(("│ ", "dim"), styled(line, ""))
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def styled(line: str, style: str) -> Text:
    """Return a line as text: its colours are kept, what moves the cursor is not."""
    text = Text.from_ansi(line.expandtabs(), style=style)
    text.plain = "".join(letter if letter >= " " else "�" for letter in text.plain)
    return text

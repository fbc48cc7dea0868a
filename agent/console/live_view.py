"""Show a pipeline on a terminal as a tree that is drawn again and again.

Actions stand under the actions that they need, with stage, time and the last lines of the log. The log gets as many
lines as fit on the terminal. An action that has ended is one line. If the pipeline has a single action, its log stays
on the screen above one status line. At the end the summary replaces the tree.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.tree import Tree

from agent.console import terminal_text
from agent.console.formatting import (
    RESULT_COLOURS,
    duration_text,
    first_line,
    plural,
    rate_text,
    shown_path,
    size_text,
    styled,
    styled_log,
)
from agent.console.listing import dependency_order, tree_parent
from agent.console.reports import final_summary
from agent.console.reports.run_report import Report
from agent.console.terminal_text import LineSplitter
from agent.console.view import View
from agent.domain import events as session_events
from agent.domain.errors import Stage
from agent.domain.events import ServiceState, Source
from agent.domain.outcome import Result
from agent.pipeline import events

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, RenderableType
    from rich.text import Text

    from agent.console.reports.run_report import ActionReport
    from agent.pipeline.events import PipelineEvent, Transfer

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MARKS = {Result.SUCCEEDED: "✔", Result.FAILED: "✘", Result.CANCELLED: "⊘"}
# Replacements for characters that a terminal without UTF-8 cannot show.
ASCII = str.maketrans("✔✘⊘·│━╺", "+x-.|=-")
# Number of columns of the progress bar of a file that is being copied.
BAR_WIDTH = 24
# Maximum number of log lines shown under one action.
MAX_LOG_LINES = 12
# Minimum number of seconds between two drawings. More drawings would only cost CPU time.
DRAW_SECONDS = 0.1


class LiveView(View):
    """Draws the tree at most ten times a second, however many events arrive."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.report = Report()
        self.recent_lines: dict[str, deque[str]] = {}
        self.splitters: dict[str, LineSplitter] = {}
        self.live: Live | None = None
        self.stderr = sys.stderr
        self.last_drawing = 0.0

    @property
    def single(self) -> bool:
        """Whether the pipeline has one action only."""
        return len(self.report.actions) == 1

    def show(self, event: PipelineEvent) -> None:
        """Record an event. Draw the tree if the last drawing is at least `DRAW_SECONDS` old."""
        self.report.add(event)
        name = event.action
        match event.body:
            case events.LogText(data=data, source=source):
                self.add_lines(name, self.splitters.setdefault(name, LineSplitter()).feed(data), source)
            case session_events.CommandStarted(index=index) if self.single:
                rest = self.splitters.setdefault(name, LineSplitter()).flush()
                self.add_lines(name, rest, Source.COMMANDS)
                command = first_line(self.report.actions[name].command_text(index))
                self.add_lines(name, [f"$ {command}"], Source.AGENT)
            case events.ActionEnded():
                rest = self.splitters.setdefault(name, LineSplitter()).flush()
                self.add_lines(name, rest, Source.COMMANDS)
                self.recent_lines.pop(name, None)
        if time.monotonic() - self.last_drawing >= DRAW_SECONDS:
            self.tick()

    def add_lines(self, name: str, lines: list[str], source: Source) -> None:
        """Keep lines for the next drawing. Lines of a single action are printed at once and stay on the screen."""
        if not lines:
            return
        style = "" if source is Source.COMMANDS else "dim"
        # The log of a failed set-up is printed later, in the block of the failure.
        if self.single and source is not Source.SETUP:
            text = Group(*(styled_log(line, style) for line in lines))
            self.live_region().console.print(text, soft_wrap=True)
        elif not self.single:
            self.recent_lines.setdefault(name, deque(maxlen=MAX_LOG_LINES)).extend(lines)

    def live_region(self) -> Live:
        """Return the part of the screen that is drawn again and again. The first call creates it."""
        if self.live is None:
            # While the region is drawn, the library rich prints standard error on the terminal, above the region.
            self.stderr = sys.stderr
            self.live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
            self.live.start()
        return self.live

    def tick(self) -> None:
        """Draw the tree."""
        if not self.report.actions:
            return
        self.last_drawing = time.monotonic()
        self.live_region().update(self.picture(time.time()), refresh=True)

    def hold(self) -> None:
        """Remove the tree from the screen. The next `tick` draws it again."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def close(self, report: Report) -> None:
        """Replace the tree by the summary."""
        self.hold()
        final_summary.print_summary(self.console, report)

    def abandon(self) -> None:
        """Connect standard error to its own file again."""
        if self.live is not None:
            self.live = None
            sys.stderr = self.stderr

    # ---- what the view draws

    def picture(self, now: float) -> RenderableType:
        """Return the tree, or the status line of a single action. `now`: seconds since the epoch."""
        transfers = self.transfers()
        shown, hidden = self.shown_actions()
        room = self.log_lines_per_action(shown)
        if self.single:
            return Group(*(self.entry(action, now, transfers, 0) for action in shown))
        tree = Tree(self.title(now), guide_style="dim")
        nodes: dict[str, Tree] = {}
        actions = {action.name: action for action in shown}
        for name in dependency_order({action.name: action.needs for action in shown}):
            action = actions[name]
            parent = tree_parent(action.needs, nodes)
            others = [need for need in action.needs if need != parent] if parent or len(action.needs) > 1 else []
            nodes[name] = nodes.get(parent, tree).add(self.entry(action, now, transfers, room, others))
        if hidden:
            tree.add(styled((f"{hidden} more", "dim")))
        return tree

    def title(self, now: float) -> Text:
        """Return name, time and number of actions by result, for the root of the tree."""
        actions = self.report.actions.values()
        results = [each.outcome.result.value if each.outcome else "" for each in actions]
        counts = [f"{results.count(each.value)} {each.value}" for each in Result if each.value in results]
        running = sum(1 for each in actions if not each.outcome and each.attempts)
        counts += [f"{running} running"] if running else []
        spent = duration_text(max(0.0, now - self.report.started_at))
        return styled((self.report.name, "bold"), (f"  {spent}  {', '.join(counts)}", "dim"))

    def shown_actions(self) -> tuple[list[ActionReport], int]:
        """Return the actions that fit on the terminal, in the order of the file, and the number of the others."""
        actions = list(self.report.actions.values())
        height = max(4, self.console.height - 3)
        if len(actions) <= height:
            return actions, 0
        chosen = sorted(actions, key=display_rank)[: height - 1]
        names = {each.name for each in chosen}
        return [each for each in actions if each.name in names], len(actions) - len(chosen)

    def log_lines_per_action(self, shown: list[ActionReport]) -> int:
        """Return how many lines of its log each running action gets."""
        running = sum(1 for each in shown if each.stage is not None)
        services = sum(len(each.services) for each in shown if each.stage is not None)
        free = self.console.height - len(shown) - services - 3
        return max(0, min(MAX_LOG_LINES, free // running)) if running else 0

    def entry(
        self,
        action: ActionReport,
        now: float,
        transfers: Mapping[str, Transfer],
        room: int,
        others: Sequence[str] = (),
    ) -> RenderableType:
        """Return the status line of an action and, while it runs, the last `room` lines of its log.

        `others` are the needs of the action that are not its parent in the tree.
        """
        line = status_line(action, now, transfers.get(action.name))
        if others:
            line = styled(line, (f"  needs {', '.join(others)} too", "dim"))
        line.no_wrap, line.overflow = True, "ellipsis"
        if self.console.encoding not in ("utf-8", "utf8"):
            line.plain = line.plain.translate(ASCII)
        recent = list(self.recent_lines.get(action.name, ()))[-room:] if room and action.stage is not None else []
        return Group(line, *service_lines(action, now), *(log_line(each) for each in recent))


def display_rank(action: ActionReport) -> int:
    """Return the rank of an action on a terminal that is too small: running, failed, waiting, then all others."""
    if action.outcome is None:
        return 0 if action.attempts else 2
    return 1 if action.outcome.result is Result.FAILED else 3


def status_line(action: ActionReport, now: float, transfer: Transfer | None) -> Text:
    """Return the state of an action in one line. `transfer` is the file that is being copied, if any."""
    if action.outcome is not None:
        return outcome_line(action)
    if not action.attempts:
        return styled((f"· {action.name}  waiting{f': {action.detail}' if action.detail else ''}", "dim"))
    frame = SPINNER[int(now * 10) % len(SPINNER)]
    stage = action.stage.value if action.stage else "starting"
    parts: list[str | tuple[str, str] | Text] = [(frame, "cyan"), " ", (action.name, "bold"), "  ", (stage, "cyan")]
    parts.append((f" {duration_text(max(0.0, now - action.stage_since))}", "dim"))
    if action.attempts > 1:
        parts.append((f"  attempt {action.attempts}", "yellow"))
    if transfer is not None:
        parts += ["  ", transfer_bar(transfer)]
    elif action.stage is Stage.COMMANDS and action.command:
        first = terminal_text.lines(action.command_text(action.command).strip())[0]
        position = f"({action.command}/{len(action.commands)}) " if len(action.commands) > 1 else ""
        parts.append(f"  {position}$ {first}")
    elif action.detail:
        parts.append((f"  {action.detail}", "dim"))
    return styled(*parts)


def service_lines(action: ActionReport, now: float) -> list[Text]:
    """Return a line for each service of an action that runs: its state, and for how long it has this state."""
    if action.stage is None:
        return []
    lines = []
    for name, service in action.services.items():
        style = "yellow" if service.state is ServiceState.ENDED else "dim"
        spent = duration_text(max(0.0, now - service.since))
        line = styled(("  service ", "dim"), name, (f"  {service.text} {spent}", style))
        line.no_wrap, line.overflow = True, "ellipsis"
        lines.append(line)
    return lines


def outcome_line(action: ActionReport) -> Text:
    """Return the line of an action that has ended: time, and either the stages and files or the message."""
    outcome = action.outcome
    if outcome is None:
        raise AssertionError("the action has no outcome")
    spent = f"  {duration_text(action.seconds)}" if action.seconds else ""
    text = styled((MARKS[outcome.result], RESULT_COLOURS[outcome.result]), " ", (action.name, "bold"), spent)
    if outcome.result is not Result.SUCCEEDED:
        return styled(text, (f"  {outcome.message or action.reason_text}", RESULT_COLOURS[outcome.result]))
    stages = [
        f"{final_summary.STAGES[each]} {duration_text(seconds)}"
        for each, seconds in action.stages.items()
        if each in final_summary.STAGES
    ]
    files = final_summary.files_text(action)
    return styled(text, (f"  {' · '.join(stages)}", "dim"), (f"  {files}" if files else "", "dim"))


def transfer_bar(transfer: Transfer) -> Text:
    """Return the progress bar of the current file, and the number, size and rate of all files copied so far."""
    filled = BAR_WIDTH * transfer.done // transfer.size if transfer.size else 0
    files = f"{plural(transfer.files, 'file')}, " if transfer.files else ""
    copied = f"  {files}{size_text(transfer.sent)}  {rate_text(transfer.sent, transfer.seconds)}"
    path = f"  {shown_path(transfer.path)}" if transfer.path else ""
    return styled(("━" * filled, "green"), ("━" * (BAR_WIDTH - filled), "dim"), copied, (path, "dim"))


def log_line(line: str) -> Text:
    """Return a line of a log with a bar on its left. The terminal's edge cuts a long line."""
    text = styled(("│ ", "dim"), styled_log(line))
    text.no_wrap, text.overflow = True, "ellipsis"
    return text

"""The findings of one run of `sealci-agent conformance`: which points held, were broken, or were not checked.

`Findings` lives as long as one run of the tool.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.conformance import points
from agent.conformance.player import Breach
from agent.domain.check_result import Finding, Verdict, failed, ok, skipped

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from agent.conformance.player import Player
    from agent.conformance.points import Point
    from agent.protocol.wire import agent_pb2 as wire


class NotChecked(Exception):
    """A point cannot be checked with this scheduler. The message has the reason."""


class Findings:
    """Collects findings in the order in which they are found. `queue` ends with None."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Finding | None] = asyncio.Queue()
        self.verdicts: dict[Point, Verdict] = {}

    def held(self, *needed: Point) -> bool:
        return all(self.verdicts.get(each) is Verdict.OK for each in needed)

    def broken(self, point: Point) -> bool:
        return self.verdicts.get(point) is Verdict.FAILED

    def add(self, point: Point, verdict: Verdict, detail: str = "") -> None:
        """Add a finding. Only a breach replaces an earlier finding of the same point."""
        if point in self.verdicts and (verdict is not Verdict.FAILED or self.broken(point)):
            return
        self.verdicts[point] = verdict
        if verdict is Verdict.OK:
            self.queue.put_nowait(ok(point.name, point.rule))
        elif verdict is Verdict.FAILED:
            self.queue.put_nowait(failed(point.name, detail, f"{point.rule} See {point.place}"))
        else:
            self.queue.put_nowait(skipped(point.name, detail))

    async def check(self, point: Point, work: Coroutine[Any, Any, None], needs: Sequence[Point] = ()) -> bool:
        """Check one point by running `work`, which raises Breach or NotChecked. Return whether the point held.

        `needs` are points that must have held. Otherwise the point is not checked.
        """
        missing = next((each for each in needs if not self.held(each)), None)
        if missing is not None:
            work.close()
            self.add(point, Verdict.SKIPPED, f"needs {missing.name!r}, which did not hold")
            return False
        try:
            await work
        except Breach as breach:
            broken = breach.point or point
            self.add(broken, Verdict.FAILED, str(breach))
            self.add(point, Verdict.SKIPPED, f"needs {broken.name!r}, which did not hold")
            return False
        except NotChecked as why:
            self.add(point, Verdict.SKIPPED, str(why))
            return False
        self.add(point, Verdict.OK)
        return True

    async def health(self, player: Player, status: wire.Health.Status.ValueType, running: int = 0) -> None:
        """Report a player's health. The answer is not awaited if the scheduler is known to give none.

        Raises:
            Breach: the scheduler broke a point.
        """
        try:
            await player.health(status, running, wait=not self.broken(points.HEALTH))
        except Breach as breach:
            if breach.point is not points.HEALTH:
                raise
            self.add(points.HEALTH, Verdict.FAILED, str(breach))

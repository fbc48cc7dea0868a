"""The verbs with which a session drives its environment, and their contract.

The order of a life: `environment` (no I/O) -> `create` -> `observations` and `log` side by side -> `files` -> `remove`.
`remove` is always called, also when `create` failed half way. `cluster.environment` implements this on Kubernetes, the
flow tests in memory. Every method may be cancelled at any await; none raises anything but `agent.domain.errors` and
`CancelledError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from agent.domain.actions import Action, ArtifactRules
    from agent.domain.artifacts import FilePart
    from agent.domain.log_cursor import Cursor
    from agent.domain.observations import Collected, LogGap, LogLost, LogPiece, Marker, Observation
    from agent.domain.outcome import Outcome


class MarkerReader(Protocol):
    """Takes the supervisor's markers out of a log, byte by byte exact."""

    @property
    def buffered(self) -> int:
        """How many bytes at the end of what was fed are kept back: they may begin a marker."""

    def feed(self, data: bytes) -> list[bytes | Marker]:
        """Return text and markers in order."""

    def flush(self) -> bytes:
        """Return what was kept back, at the end of the log."""


class Environment(Protocol):
    """One pod with its Secret, as a session sees it."""

    @property
    def name(self) -> str:
        """Where it is, for people: "namespace/pod"."""

    async def create(self, tell: Callable[[str], Awaitable[None]] | None = None) -> None:
        """Make the pod and its Secret; safe to repeat. `tell` hears, for people, what has to be waited for.

        Raises:
            ActionFailed: the cluster refuses it for good, or could not be reached for too long.
        """

    async def take_over(self, secrets: Mapping[str, str]) -> None:
        """Complete an adopted environment whose former agent may have died half way through its set-up.

        Raises:
            ActionFailed: it cannot be completed.
        """

    @property
    def repeatable(self) -> bool:
        """Whether `create` can make it again after `remove`: an adopted one may not tell enough of itself."""

    @property
    def running_for(self) -> float:
        """How many seconds the commands have been running, by the cluster's clock; 0 before."""

    def leave(self) -> None:
        """Have nothing to do with the environment any more: `remove` does not touch it from now on."""

    def let_go(self) -> None:
        """Hold nothing of an environment that no session will drive; what `remove` does in the end."""

    def observations(self) -> AsyncGenerator[Observation, None]:
        """Yield what is seen, on every change; ends after the first final observation."""

    def markers(self) -> MarkerReader:
        """Return a fresh reader for the markers of this environment's log."""

    def log(self, cursor: Cursor) -> AsyncGenerator[LogPiece | LogGap | LogLost, None]:
        """Yield the log from the cursor to its end, over any number of broken connections.

        Not reading stops the connection: the consumer's pace bounds the memory. `ended` tells it when the last
        marker was seen.
        """

    def log_ended(self) -> None:
        """Tell the reader that the supervisor's last marker was seen: nothing follows."""

    async def interrupt(self, grace: float) -> bool:
        """Send TERM to the commands and KILL after `grace` seconds; False when the pod cannot be reached."""

    def files(self, rules: ArtifactRules, seconds: float) -> AsyncGenerator[FilePart | Collected, None]:
        """Copy files out within `seconds`, each verified; the last item is `Collected`.

        What is not begun when most of the time is over is left out, and said in `Collected`.

        Raises:
            ClusterError: it broke; `retryable` when a new call may bring all of it.
        """

    @property
    def attended(self) -> bool:
        """Whether somebody at a terminal has a hand in it: only then are `fill` and `linger` called."""

    async def fill(self) -> None:
        """Complete the workspace before the commands begin.

        Raises:
            ActionFailed: it cannot be completed.
        """

    async def linger(self, outcome: Outcome) -> str:
        """Stay until nobody looks at it any more; returns what is to be said of a failure."""

    async def remove(self) -> None:
        """Delete what was created and return when the API says it is gone, by force after a while; never raises
        for the cluster's errors: what could not be removed is counted and left to the sweep."""


class Backend(Protocol):
    """Where environments come from."""

    @property
    def reachable(self) -> bool:
        """Whether the cluster answered lately."""

    def environment(self, action: Action) -> Environment:
        """Return the environment of this attempt, not yet made."""

"""The two interfaces that a session uses: an environment in which its commands run, and a sink for its events.

Package `execution` declares the interfaces, and other packages implement them. `cluster.environment` makes environments
of Kubernetes pods, and `scheduler.stream.outbox` delivers events. Tests implement the two interfaces in memory.

A session calls its environment in this order: `Backend.environment` (no I/O), `create`, `observations` and `log` at the
same time, `files`, `remove`. `remove` is always called, also after a failed `create`. Every method may be cancelled at
any await. Methods raise only the errors of `agent.domain.errors` and `CancelledError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from agent.domain.actions import Action, ArtifactRules, Cache, CacheScope, Key
    from agent.domain.artifacts import FileData, FilePart, InputFile
    from agent.domain.events import CacheResult, Event
    from agent.domain.log_cursor import Cursor
    from agent.domain.observations import Collected, LogItem, Marker, Observation, ServiceOutput
    from agent.domain.outcome import Outcome
    from agent.domain.session_state import Resume


class MarkerReader(Protocol):
    """Separates markers from the text of a log, exact to the byte.

    A marker is a line about the start or end of a command. A reader belongs to one log stream.
    """

    @property
    def buffered(self) -> int:
        """Return the number of bytes at the end of the input that are kept back because they may begin a marker."""

    def feed(self, data: bytes) -> list[bytes | Marker]:
        """Return text and markers in the order of the log, which together are the input without the bytes kept back."""

    def flush(self) -> list[bytes | Marker]:
        """Return the text that was kept back. The caller calls this method once, at the end of the log."""


class Services(Protocol):
    """The services of one environment, as a session sees them. They live as long as the environment."""

    async def release_commands(self) -> None:
        """Start the commands if they wait for the agent, because it alone sees that all services are ready.

        A repeated call is safe.

        Raises:
            ActionFailed: the commands could not be started.
        """

    def note_ready(self, name: str) -> None:
        """Record that the ports of a service accept."""

    def note_released(self) -> None:
        """Record that the commands have begun. From then on, the end of a service stops the commands."""

    async def last_lines(self, name: str) -> bytes:
        """Return the end of a service's log, "" if there is none. Complete lines.

        Raises:
            ClusterError: the log cannot be read.
        """

    def live_log(self, name: str, cursor: bytes) -> AsyncGenerator[ServiceOutput, None]:
        """Yield the log of a service from a cursor on, in complete lines, until the service has ended.

        Raises:
            ClusterError: the log cannot be followed.
        """


class Environment(Protocol):
    """The pod of one action and the pod's Secret, as a session sees them. It lives as long as the session."""

    @property
    def name(self) -> str:
        """Return "namespace/pod", for people."""

    async def create(self, notify: Callable[[str], Awaitable[None]] | None = None) -> None:
        """Create the pod and its Secret. A repeated call is safe.

        `notify` is called with texts for people that describe what the set-up waits for.

        Raises:
            ActionFailed: the API refused for good, or was unreachable for too long.
        """

    async def take_over(self, resume: Resume) -> bool:
        """Create what is missing of an adopted environment, because the former agent may have died during `create`.

        Returns False if no command has run, and the environment can start none any more. `begin_again` must follow.

        Raises:
            ActionFailed: the environment cannot be completed.
        """

    async def begin_again(self, action: Action) -> None:
        """Drop the adopted pod, so that `create` runs this action in another one.

        Raises:
            ActionFailed: it is not certain that the adopted pod runs no command.
        """

    @property
    def recreatable(self) -> bool:
        """Return whether `create` can create the pod again after `remove`.

        For an adopted pod, this agent possibly does not have all data that `create` needs.
        """

    @property
    def running_for(self) -> float:
        """Return for how many seconds the commands have been running, by the cluster's clock. 0 before they start."""

    @property
    def setup_notice(self) -> str:
        """Return text for the log of an action whose set-up succeeded, "" for none."""

    def disown(self) -> None:
        """Give up ownership: another agent has adopted the pod or will adopt it. `remove` then does nothing."""

    def release(self) -> None:
        """Release what this process keeps in memory about the pod. The cluster does not change.

        `remove` calls this method too.
        """

    @property
    def services(self) -> Services:
        """Return the services of the action."""

    def observations(self) -> AsyncGenerator[Observation, None]:
        """Yield an observation of the pod on every change. Ends after a `SetupFailed`, `Exited` or `Lost`."""

    def markers(self, start: Cursor) -> MarkerReader:
        """Return a new reader for the markers in this environment's log from a cursor on."""

    def log(self, cursor: Cursor) -> AsyncGenerator[LogItem, None]:
        """Yield the log from the cursor to its end, over any number of broken connections.

        The last item is a `LogEnd` or a `LogLost`.

        The connection is read only as fast as the caller asks, which bounds the memory.
        """

    async def interrupt(self, grace: float) -> bool:
        """Send SIGTERM to the commands, and SIGKILL after `grace` seconds. Returns False if the pod is unreachable."""

    def copy_turn(self) -> AbstractAsyncContextManager[None]:
        """Return a context that waits for a turn to copy files out. The turn ends with the context.

        Only a limited number of environments can copy files at the same time.
        """

    @property
    def has_object_store(self) -> bool:
        """Return whether the pod can put files into an object store, and read files from it."""

    def has_object(self, uri: str) -> bool:
        """Return whether the pod can read this file of an object store."""

    def files(
        self, rules: ArtifactRules, seconds: float, *, objects: bool = False, packs: bool = False
    ) -> AsyncGenerator[FilePart | Collected, None]:
        """Copy files out of the pod within `seconds`, each with its checksum. The last item is `Collected`.

        `objects`: the pod puts the files into the object store. `packs`: many small files may share an object.

        Near the end of this time, no further file is started. The remaining files are left out and listed in
        `Collected`.

        Raises:
            ClusterError: the copy failed. `retryable` is set if a new call can succeed.
        """

    @property
    def interactive(self) -> bool:
        """Return whether a person at a terminal uses the environment.

        `upload_workspace` and `hold_for_debugging` are called only if this is True.
        """

    async def upload_workspace(self, notify: Callable[[str], Awaitable[None]]) -> None:
        """Copy the local working tree of the person at the terminal into the workspace. The commands start afterwards.

        `notify` is called before the copy, with a text for people that has the size of the working tree.

        Raises:
            ActionFailed: the files could not be copied.
        """

    async def receive_inputs(self, items: AsyncIterator[InputFile | FileData], seconds: float) -> None:
        """Copy files into the workspace within `seconds`, then let the commands start.

        Each file is an `InputFile`, whose path is relative to the workspace, and its data. A file with a `uri` has no
        data: the pod reads it from the object store. A repeated call is safe. If the commands have started already, the
        call changes nothing.

        Raises:
            ActionFailed: a file cannot be written at its path, or its content has another hash.
            ClusterError: the copy broke. `retryable` is set if a new call may succeed.
            Exception: whatever `items` raises.
        """

    @property
    def cache_trouble(self) -> str:
        """Return why caches cannot be used now, for people. "" if they can."""

    def restore_caches(self, caches: tuple[Cache, ...], scope: CacheScope) -> AsyncGenerator[CacheResult, None]:
        """Restore caches into the workspace, one result for each. `receive_inputs` follows, and starts the commands.

        A repeated call is safe. If the commands have started already, the call changes and yields nothing.

        Raises:
            ClusterError: the caches without a result are not restored.
        """

    def save_caches(
        self, caches: tuple[Cache, ...], scope: CacheScope, *, succeeded: bool
    ) -> AsyncGenerator[CacheResult, None]:
        """Save the caches that were not restored from their own key, after commands that `succeeded` or not.

        Raises:
            ClusterError: the caches without a result are not saved.
        """

    async def hold_for_debugging(self, outcome: Outcome) -> str:
        """Wait while a person looks at the environment.

        Returns text for the action's log that explains the failure, or "" if there is nothing to explain.
        """

    async def remove(self) -> None:
        """Delete the pod and its Secret, by force after a while. Returns when the API reports that they are gone.

        Does not raise errors of the cluster. Objects that could not be deleted are counted, and the sweep for orphans
        deletes them later.
        """


class Backend(Protocol):
    """Makes environments. There is one per agent."""

    @property
    def reachable(self) -> bool:
        """Return whether the cluster can run an action now."""

    def environment(self, action: Action) -> Environment:
        """Return the environment of an action. Nothing is created yet."""


class SessionSink(Protocol):
    """Delivers the events of one session to the scheduler. It lives as long as the session.

    A sink numbers the events, keeps them until the scheduler has acknowledged them, and sends them again after a
    reconnect. Its window limits the bytes of unacknowledged events. While the window is full, `send` waits, so that the
    session does not read the log.
    """

    async def send(self, event: Event) -> None:
        """Add an event to the events that the sink will send. Waits while the window of the sink is full."""

    async def wait_until_stored(self) -> None:
        """Wait until the scheduler has acknowledged every event."""

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Send files in a gRPC call of their own. Returns when the scheduler has stored all of them.

        Raises:
            SchedulerError: the upload broke. The caller starts again from the first file.
            Exception: any error that `parts` raises.
        """

    @property
    def stores_references(self) -> bool:
        """Return whether the scheduler stores files that are in an object store by their names."""

    @property
    def stores_packs(self) -> bool:
        """Return whether the scheduler also stores the place of a file within an object."""

    def fetch(self, number: int) -> AsyncGenerator[FilePart, None]:
        """Yield the parts of the files of input `number`, counted from 1, in a gRPC call of its own.

        Raises:
            InputMissing: the scheduler no longer stores a file.
            SchedulerError: the call broke. The caller starts again from the first file.
        """

    def restart(self, seq: int) -> None:
        """Drop all events and continue the numbering at `seq` + 1, after the scheduler has lost its state."""

    def close(self) -> None:
        """Drop the events of the session that are not yet sent. The session sends no event afterwards."""


class EventSink(Protocol):
    """Opens a sink for each session. There is one per agent."""

    def open(self, key: Key, *, adopted: bool = False) -> SessionSink:
        """Return the sink of a new session.

        The sink of an adopted session sends nothing until the scheduler has sent the resume point.
        """

"""A cluster in memory: each environment stands for the pod of one action and follows a script.

The log of an environment has the same markers (lines for the start and end of a command) as the log of a real pod. By
default an environment pulls its image, runs all commands with exit code 0 and succeeds. A `Script` changes this default
run. A step in `holds` waits until the test unblocks the step. Each environment counts its removals, so that a test can
check that every environment is removed exactly once. A FakeBackend lives as long as a test.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.cluster.supervisor.markers import MarkerReader
from agent.domain.artifacts import FileData, FileEnd, FileStart, InputFile, StoredObject
from agent.domain.errors import Reason
from agent.domain.events import ArtifactSummary
from agent.domain.observations import (
    FINAL,
    Collected,
    Exited,
    LogEnd,
    LogGap,
    LogItem,
    LogLost,
    LogPiece,
    Observation,
    Running,
    ServiceOutput,
    Waiting,
)
from agent.domain.outcome import Result
from tests.fakes.waiting import Changing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

    from agent.domain.actions import Action, ArtifactRules, Cache, CacheScope
    from agent.domain.artifacts import FilePart
    from agent.domain.events import CacheResult
    from agent.domain.log_cursor import Cursor
    from agent.domain.outcome import Outcome
    from agent.domain.session_state import Resume

NONCE = "0123456789abcdef"


@dataclass
class Script:
    """Changes to the default run of an environment.

    Args:
        creates: for each call of `create` the error to raise, or None for a call without an error.
        setups: the observations after each call of `create`. The last entry counts for all later calls.
        codes: the exit code of each command, in order. A code other than 0 must be the last.
        output: the bytes that each command writes.
        end: the last observation, in place of the observation that follows from `codes`.
        holds: the steps that wait for the test: "create", "setup", "commands", "files", "remove".
        collections: for each call of `files` the result, a `Collected` or an error. The last entry counts for all later
            calls.
        setup_notice: text for the log of the action after the set-up.
        interactive: a person works in the environment at a terminal.
        deaf: the commands cannot be interrupted.
        service_logs: the end of the log of each service, by name, or the error of a log that cannot be read.
        live_logs: what `live_log` yields for each service, by name, or the error that it raises.
        begun: whether the commands of an adopted environment have begun.
        objects: the pod can use an object store.
        caches: for each call of `restore_caches` and `save_caches` its results, and perhaps an error at its end. A call
            of a cache without an entry here yields nothing.
        cache_trouble: why caches cannot be used.
        deliveries: for each `receive_inputs` the error to raise at its end, or None.
        remove_error: an error that `remove` raises. The `remove` of a real environment never raises.
    """

    creates: list[BaseException | None] = field(default_factory=list)
    setups: list[Sequence[Observation]] = field(default_factory=list)
    codes: Sequence[int] = ()
    output: bytes = b"hello\n"
    end: Observation | None = None
    tail: Sequence[LogGap | LogLost] = ()
    holds: frozenset[str] = frozenset()
    collections: list[Collected | BaseException] = field(default_factory=list)
    content: bytes = b"artifact"
    deaf: bool = False
    service_logs: dict[str, bytes | BaseException] = field(default_factory=dict)
    live_logs: dict[str, list[ServiceOutput] | BaseException] = field(default_factory=dict)
    interactive: bool = False
    setup_notice: str = ""
    begun: bool = True
    objects: bool = False
    caches: list[list[CacheResult | BaseException]] = field(default_factory=list)
    cache_trouble: str = ""
    deliveries: list[BaseException | None] = field(default_factory=list)
    remove_error: BaseException | None = None


class FakeBackend(Changing):
    """Creates the environments of actions in memory. The function `script` returns the Script for an action."""

    def __init__(self) -> None:
        self.reachable = True
        self.script: Callable[[Action], Script] = lambda action: Script()
        self.environments: dict[str, FakeEnvironment] = {}
        self.alive: set[str] = set()
        self.changed = asyncio.Condition()

    def environment(self, action: Action) -> FakeEnvironment:
        environment = FakeEnvironment(self, action, self.script(action))
        self.environments[action.key.action_id] = environment
        return environment

    def describe(self) -> str:
        """Return the steps of each environment, for the message of a failed wait."""
        return "\n".join(f"{each.name}: {each.steps}" for each in self.environments.values()) or "no environment"

    async def at(self, action_id: str, step: str) -> FakeEnvironment:
        """Wait until the environment of the action `action_id` has reached `step`. Return the environment."""
        await self.until(
            f"{action_id} reaches the step {step}",
            lambda: action_id in self.environments and step in self.environments[action_id].steps,
        )
        return self.environments[action_id]


class FakeServices:
    """The services of an environment in memory. `ready` lists the names whose ports accept, `released` the releases."""

    def __init__(self, environment: FakeEnvironment) -> None:
        self.environment = environment
        self.ready: list[str] = []
        self.released = 0
        self.cursors: dict[str, bytes] = {}

    async def release_commands(self) -> None:
        if self.environment.action.services:
            await self.environment.note("release commands")

    def note_ready(self, name: str) -> None:
        self.ready.append(name)

    def note_released(self) -> None:
        self.released += 1

    async def last_lines(self, name: str) -> bytes:
        found = self.environment.script.service_logs.get(name, b"")
        if isinstance(found, BaseException):
            raise found
        return found

    async def live_log(self, name: str, cursor: bytes) -> AsyncGenerator[ServiceOutput, None]:
        self.cursors[name] = cursor
        found = self.environment.script.live_logs.get(name, [])
        if isinstance(found, BaseException):
            raise found
        for part in found:
            yield part


class FakeEnvironment:
    """The environment of one action. `steps` lists what has happened in it, in order."""

    def __init__(self, backend: FakeBackend, action: Action, script: Script) -> None:
        self.backend = backend
        self.action = action
        self.script = script
        self.steps: list[str] = []
        self.unblocked: set[str] = set()
        self.seen: list[Observation] = []
        self.written: list[LogItem] = []
        self.total = 0
        self.log_is_over = False
        self.creations = 0
        self.removals = 0
        self.interrupts: list[float] = []
        self.inputs: dict[bytes, tuple[int, bytes]] = {}
        self.playing = False
        self.disowned = False
        self.services = FakeServices(self)

    @property
    def name(self) -> str:
        return f"memory/{self.action.key.action_id}"

    async def take_over(self, resume: Resume) -> bool:
        """Record that an agent has adopted the session. Return `begun` of the script."""
        await self.note("take over")
        return self.script.begun

    async def begin_again(self, action: Action) -> None:
        """Record that the adopting agent begins the action."""
        self.action = action
        await self.note("begin again")

    @property
    def running_for(self) -> float:
        """Return a small number of seconds if the commands have started, otherwise return 0."""
        return 0.001 if any(isinstance(each, Running) for each in self.seen) else 0.0

    @property
    def setup_notice(self) -> str:
        return self.script.setup_notice

    @property
    def recreatable(self) -> bool:
        """Return True, because the pod can always be re-created."""
        return True

    def release(self) -> None:
        """Record that no session controls the environment any more."""
        self.steps.append("release")

    def disown(self) -> None:
        """Record that another agent owns the environment now."""
        self.disowned = True

    # ---- methods that only tests call

    async def note(self, step: str) -> None:
        """Record that the environment has reached `step`.

        If the script holds the step, wait until the test unblocks it.
        """
        self.steps.append(step)
        await self.backend.notify()
        if step in self.script.holds:
            await self.backend.wait_for(lambda: step in self.unblocked)

    async def unblock(self, step: str) -> None:
        """Let the environment continue after `step`, at which the script holds it."""
        self.unblocked.add(step)
        await self.backend.notify()

    async def show(self, *observations: Observation) -> None:
        """Let the environment report these observations of the pod, in order."""
        self.seen += observations
        await self.backend.notify()

    async def write(self, data: bytes) -> None:
        """Append `data` to the log of the action."""
        self.written.append(LogPiece(data, self.total))
        self.total += len(data)
        await self.backend.notify()

    async def mark(self, text: str) -> None:
        """Append a line with a marker of the supervisor to the log. `text` is the content of the marker."""
        await self.write(f"\x1esealci:{NONCE}:{text}\n".encode())

    async def run_commands(self) -> None:
        """Write the log of all commands as the script demands, and end the container."""
        codes = self.script.codes or (0,) * len(self.action.commands)
        for number, code in enumerate(codes, 1):
            await self.mark(f"s:{number}")
            await self.write(self.script.output)
            await self.mark(f"f:{number}:{code}")
        await self.end(codes[-1], len(codes))

    async def end(self, code: int, command: int) -> None:
        """End the container. Its last command has the number `command` and ended with exit code `code`."""
        self.written += self.script.tail
        await self.mark(f"l:0:{code}")
        self.log_is_over = True
        reason = Reason.COMMAND_FAILED if code else None
        message = f"command {command} failed with exit code {code}" if code else ""
        files = self.action.artifacts.when.value != "never"
        await self.show(self.script.end or Exited(code, command, reason, message, files))

    # ---- methods that a session calls

    async def create(self, notify: Callable[[str], Awaitable[None]] | None = None) -> None:
        """Record the creation of the pod, and report the observations of the set-up that the script names.

        If the script names an error for this creation, raise the error.
        """
        self.creations += 1
        self.backend.alive.add(self.name)
        await self.note("create")
        if self.script.creates and (error := self.script.creates.pop(0)):
            raise error
        setups = self.script.setups
        setup = (setups.pop(0) if len(setups) > 1 else setups[0]) if setups else (Waiting("pulling"), Running())
        self.seen = []
        await self.show(*setup)

    async def observations(self) -> AsyncGenerator[Observation, None]:
        """Yield the observations of the pod until the final one.

        After a call of `log`, begin with the newest observation.
        """
        await self.note("setup")
        position = max(0, len(self.seen) - 1) if self.playing else 0
        while True:
            await self.backend.wait_for(lambda: len(self.seen) > position)  # noqa: B023 - awaited at once
            seen = self.seen[position]
            position += 1
            yield seen
            if isinstance(seen, FINAL):
                return

    def markers(self, start: Cursor) -> MarkerReader:
        """Return a new reader that finds the markers in the log. `start` is the cursor at which the log begins."""
        return MarkerReader(NONCE, 1000, start, len(self.action.services))

    async def log(self, cursor: Cursor) -> AsyncGenerator[LogItem, None]:
        """Yield the log from its beginning, whatever `cursor` is. The first call starts the simulated commands."""
        self.playing = True
        await self.note("log")
        if not any(isinstance(seen, FINAL) for seen in self.seen):
            await self.note("commands")
            if not self.log_is_over:
                await self.run_commands()
        position = 0
        while True:
            await self.backend.wait_for(lambda: self.log_is_over or len(self.written) > position)  # noqa: B023
            if position >= len(self.written):
                self.steps.append("log ended")
                yield LogEnd()
                return
            yield self.written[position]
            position += 1

    async def interrupt(self, grace: float) -> bool:
        """End the commands with exit code 143 and return True.

        If the script is `deaf`, the commands go on, and the method returns False.
        """
        self.interrupts.append(grace)
        await self.note("interrupt")
        if self.script.deaf:
            return False
        await self.end(143, 1)
        await self.unblock("commands")
        return True

    def copy_turn(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    @property
    def has_object_store(self) -> bool:
        return self.script.objects

    def has_object(self, uri: str) -> bool:
        return self.script.objects and uri.startswith("s3://")

    async def files(
        self, rules: ArtifactRules, seconds: float, *, objects: bool = False, packs: bool = False
    ) -> AsyncGenerator[FilePart | Collected, None]:
        """Yield one file, then the next result of a copy from `Script.collections`. By default, the copy succeeds.

        With `packs`, the file is the second one of its object. If the result is an error, raise the error in place of
        the end of the file.
        """
        await self.note("files")
        collections = self.script.collections
        end = collections.pop(0) if len(collections) > 1 else collections[0] if collections else collected()
        yield FileStart(b"out.txt", 0o644, len(self.script.content))
        offset = 100 if packs else 0
        yield StoredObject("s3://bucket/sealci/x", "etag", offset) if objects else FileData(self.script.content)
        if isinstance(end, BaseException):
            raise end
        yield FileEnd(b"\0" * 32)
        yield end

    @property
    def interactive(self) -> bool:
        """Return whether a person works in the environment at a terminal."""
        return self.script.interactive

    async def upload_workspace(self, notify: Callable[[str], Awaitable[None]]) -> None:
        """Record that the workspace was uploaded."""
        await notify("copying the working tree, 1.5 MB")
        await self.note("upload_workspace")

    async def receive_inputs(self, items: AsyncIterator[InputFile | FileData], seconds: float) -> None:
        """Keep the mode and the content of each file in `inputs`.

        Then raise the error that the script names for this delivery, if any.
        """
        await self.note("inputs")
        self.inputs, path, mode = {}, b"", 0
        async for item in items:
            if isinstance(item, InputFile):
                path, mode = item.path, item.mode
            data = self.inputs.get(path, (0, b""))[1] + (item.data if isinstance(item, FileData) else b"")
            self.inputs[path] = (mode, data)
        if self.script.deliveries and (error := self.script.deliveries.pop(0)):
            raise error

    @property
    def cache_trouble(self) -> str:
        return self.script.cache_trouble

    async def restore_caches(self, caches: tuple[Cache, ...], scope: CacheScope) -> AsyncGenerator[CacheResult, None]:
        """Yield the next results of the script."""
        await self.note("restore caches")
        for each in self.script.caches.pop(0) if self.script.caches else ():
            if isinstance(each, BaseException):
                raise each
            yield each

    async def save_caches(
        self, caches: tuple[Cache, ...], scope: CacheScope, *, succeeded: bool
    ) -> AsyncGenerator[CacheResult, None]:
        """Yield the next results of the script."""
        await self.note("save caches")
        for each in self.script.caches.pop(0) if self.script.caches else ():
            if isinstance(each, BaseException):
                raise each
            yield each

    async def hold_for_debugging(self, outcome: Outcome) -> str:
        """Record the hold for debugging. Return the message for the person at the terminal."""
        await self.note("hold_for_debugging")
        return "the pod shows the cause" if outcome.result is Result.FAILED else ""

    async def remove(self) -> None:
        """Record the removal of the pod, unless another agent owns the pod.

        If the script names a `remove_error`, raise it.
        """
        self.removals += 1
        if self.disowned:
            return
        await self.note("remove")
        self.backend.alive.discard(self.name)
        self.steps.append("removed")
        await self.backend.notify()
        if self.script.remove_error:
            raise self.script.remove_error


def collected(refused: str = "", left_out: int = 0) -> Collected:
    """Return the result of a copy of files: one copied file, and `left_out` files that were left out.

    `refused` is the cause if the copy failed, and empty if it succeeded.
    """
    return Collected(ArtifactSummary(files=1, bytes=8, left_out_files=left_out), refused)

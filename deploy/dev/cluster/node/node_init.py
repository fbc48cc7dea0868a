"""PID 1 of the local cluster's node: a process tree in namespaces of its own, and the supervisor of its components.

Started by `local.py` below `unshare --kill-child`, alone in its namespaces; ending it ends every component, every
container and every mount. It makes the node's view of the machine (private /run and /var/log, loopback), then
serves one line of JSON per connection on FOLDER/control.sock: {"verb": "start"|"stop"|"status", "name": NAME,
"flags": [...]}. `start` answers when the component's own check passes, `stop` when its process is gone. Flags are added
to the command line until a `start` with others. A component that ends by itself is started again after a second.
Stands alone on purpose: nothing of its folder is imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 90.0
# Servers with open watches do not end on TERM for a long time.
TERM_SECONDS = 2.0
KILL_SECONDS = 10.0
RESTART_SECONDS = 1.0


@dataclass
class Component:
    """One program of the node. `pid` is None while it does not run, `wanted` says whether it should."""

    name: str
    command: list[str]
    environment: dict[str, str]
    check: dict[str, str]
    flags: list[str] = field(default_factory=list)
    pid: int | None = None
    wanted: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Node:
    """The supervisor. All state lives on the event loop; a `stop` wins over a `start` that still waits."""

    def __init__(self, folder: Path, components: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.components = {c["name"]: Component(**c) for c in components}
        self.restarts: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Obeys until it is killed."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
        server = await asyncio.start_unix_server(self.answer, self.folder / "control.sock")
        async with server:
            await server.serve_forever()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one order, one answer."""
        try:
            order = json.loads(await reader.readline())
            reply = await self.obey(order["verb"], order.get("name", ""), order.get("flags", []))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def obey(self, verb: str, name: str, flags: list[str]) -> dict[str, Any]:
        """An order's answer; the key `error` says why it could not be obeyed."""
        if verb == "status":
            return {n: c.pid is not None for n, c in self.components.items()}
        if name not in self.components:
            return {"error": f"there is no component {name}"}
        if verb == "start":
            return await self.start(self.components[name], flags)
        if verb == "stop":
            return await self.stop(self.components[name])
        return {"error": f"unknown verb {verb}"}

    async def start(self, component: Component, flags: list[str]) -> dict[str, Any]:
        """Starts a component unless it runs with these flags, and waits for its check."""
        if component.pid is not None and component.flags != flags and (refusal := await self.stop(component)):
            return refusal
        component.flags = flags
        component.wanted = True
        if component.pid is None:
            self.spawn(component)
        try:
            async with asyncio.timeout(START_SECONDS):
                while component.pid is None or not await asyncio.to_thread(passes, component.check):
                    if not component.wanted:
                        return {"error": f"{component.name} was stopped before it came up"}
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return {"error": f"{component.name} did not come up within {START_SECONDS:.0f} s"}
        return {}

    async def stop(self, component: Component) -> dict[str, Any]:
        """Ends a component, by force if it does not listen."""
        component.wanted = False
        for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            if component.pid is None:
                break
            os.kill(component.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(component.ended.wait(), seconds)
        return {} if component.pid is None else {"error": f"{component.name} cannot be ended"}

    def spawn(self, component: Component) -> None:
        """Starts the process, with its output in the component's log."""
        log = os.open(self.folder / "logs" / f"{component.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            component.pid = os.posix_spawn(
                component.command[0],
                [*component.command, *component.flags],
                os.environ | component.environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        finally:
            os.close(log)
        component.ended.clear()

    def reap(self) -> None:
        """Collects every ended child: components, and orphans of containers, whose parent is PID 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for component in self.components.values():
                if component.pid == pid:
                    self.note_end(component, os.waitstatus_to_exitcode(status))

    def note_end(self, component: Component, code: int) -> None:
        """A component ended: asked for, or to be started again."""
        component.pid = None
        component.ended.set()
        print(f"{component.name} ended ({code})", file=sys.stderr, flush=True)
        if component.wanted:
            task = asyncio.create_task(self.restart(component), name=f"restart {component.name}")
            self.restarts.add(task)
            task.add_done_callback(self.restarts.discard)

    async def restart(self, component: Component) -> None:
        """Starts a component that ended by itself, unless it was stopped meanwhile."""
        await asyncio.sleep(RESTART_SECONDS)
        if component.wanted and component.pid is None:
            self.spawn(component)


def passes(check: dict[str, str]) -> bool:
    """Whether a component answers: `address` and `path` must give a 2xx, or `socket` must accept."""
    try:
        if "address" in check:
            return answers(check["address"], check["path"], check.get("authority"))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(check["socket"])
    except (OSError, http.client.HTTPException):
        return False
    return True


def answers(address: str, path: str, authority: str | None) -> bool:
    """Whether a GET gives a 2xx; over TLS when there is an authority that must have signed."""
    connection = (
        http.client.HTTPSConnection(address, timeout=2, context=ssl.create_default_context(cafile=authority))
        if authority
        else http.client.HTTPConnection(address, timeout=2)
    )
    with contextlib.closing(connection):
        connection.request("GET", path)
        return 200 <= connection.getresponse().status < 300


def enter(name: str, folder: Path) -> None:
    """The node's own view: mounts that stay in this namespace, a /run and a /var/log of its own, forwarding."""
    for arguments in (
        ("--make-rprivate", "/"),
        ("--make-rshared", "/"),
        ("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"),
        ("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/log"),
        ("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/lib/cni"),
        ("--bind", str(folder / "passwd"), "/etc/passwd"),
    ):
        subprocess.run(["mount", *arguments], check=True, timeout=10)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    socket.sethostname(name)


def main() -> None:
    """Makes the node's view, then serves."""
    folder = Path(sys.argv[1])
    document = json.loads((folder / "components.json").read_text("utf-8"))
    enter(document["name"], folder)
    os.umask(0o022)
    asyncio.run(Node(folder, document["components"]).serve())


if __name__ == "__main__":
    main()

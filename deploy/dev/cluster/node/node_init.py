"""Run as PID 1 of a node, and supervise the components of Kubernetes.

`namespaces.start` runs this script below `unshare --kill-child`, alone in its namespaces. When the script ends, the
kernel ends every component, every container and every mount. At its start the script gives the node its own /run,
/var/log and loopback device. Then it serves requests on FOLDER/control.sock, one line of JSON per connection:

    {"verb": "start" | "stop" | "status", "name": NAME, "flags": [...]}

The script answers `start` when the component passes its health check, and `stop` when the component's process is gone.
The flags of a `start` follow the component's own arguments, and stay until a `start` with other flags. A component that
ends without a `stop` is started again after a second.

The script imports nothing from this repository, because it runs with `python -I` and outlives changes of the clone.
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

# Seconds until the start of a component fails because the component does not pass its health check.
START_SECONDS = 90.0
CHECK_SECONDS = 0.05
# Seconds from SIGTERM to SIGKILL. A server with open watches needs long to end on SIGTERM.
TERM_SECONDS = 2.0
# Seconds from SIGKILL until `stop` fails.
KILL_SECONDS = 10.0
# Seconds until a component that ended without a `stop` is started again.
RESTART_SECONDS = 1.0


@dataclass
class Component:
    """One program of the node. `pid` is None while the program does not run.

    `should_run` is True from a request `start` to a request `stop`, and decides whether the program is restarted when
    it ends.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    check: dict[str, str]
    flags: list[str] = field(default_factory=list)
    pid: int | None = None
    should_run: bool = False
    process_ended: asyncio.Event = field(default_factory=asyncio.Event)


class Node:
    """Starts, stops and restarts all components, as long as this process runs.

    A request `stop` also ends an earlier request `start` that still waits for the health check.
    """

    def __init__(self, folder: Path, components: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.components = {c["name"]: Component(**c) for c in components}
        self.restarts: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Serve requests until the process is killed."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
        server = await asyncio.start_unix_server(self.answer, self.folder / "control.sock")
        async with server:
            await server.serve_forever()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request from a connection and write one answer."""
        try:
            request = json.loads(await reader.readline())
            reply = await self.handle(request["verb"], request.get("name", ""), request.get("flags", []))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def handle(self, verb: str, name: str, flags: list[str]) -> dict[str, Any]:
        """Return the answer to a request. If the request failed, the answer's key `error` holds the cause."""
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
        """Start a component and wait until it passes its health check. Restart it only if it runs with other flags.

        The result is empty, or has the cause of a failure under the key `error`.
        """
        if component.pid is not None and component.flags != flags and (error := await self.stop(component)):
            return error
        component.flags = flags
        component.should_run = True
        if component.pid is None:
            self.spawn(component)
        try:
            async with asyncio.timeout(START_SECONDS):
                while component.pid is None or not await asyncio.to_thread(passes, component.check):
                    if not component.should_run:
                        return {"error": f"{component.name} was stopped before it came up"}
                    await asyncio.sleep(CHECK_SECONDS)
        except TimeoutError:
            return {"error": f"{component.name} did not come up within {START_SECONDS:.0f} s"}
        return {}

    async def stop(self, component: Component) -> dict[str, Any]:
        """End a component by SIGTERM, or by SIGKILL if it does not end within TERM_SECONDS.

        The result is empty, or has the cause of a failure under the key `error`.
        """
        component.should_run = False
        for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            if component.pid is None:
                break
            os.kill(component.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(component.process_ended.wait(), seconds)
        return {} if component.pid is None else {"error": f"{component.name} does not end after SIGKILL"}

    def spawn(self, component: Component) -> None:
        """Start the component's process in a Unix session of its own, with its output in the component's log file."""
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
        component.process_ended.clear()

    def reap(self) -> None:
        """Collect the exit status of every ended child, so that no zombie stays. Components are children of this PID 1.

        Processes of containers whose parent has ended become children of PID 1 too.
        """
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for component in self.components.values():
                if component.pid == pid:
                    self.on_component_end(component, os.waitstatus_to_exitcode(status))

    def on_component_end(self, component: Component, code: int) -> None:
        """Record that a component has ended with `code`. Restart the component unless a request `stop` ended it."""
        component.pid = None
        component.process_ended.set()
        print(f"{component.name} ended ({code})", file=sys.stderr, flush=True)
        if component.should_run:
            # The set `self.restarts` keeps a reference to the task, because the event loop holds tasks only weakly.
            task = asyncio.create_task(self.restart(component), name=f"restart {component.name}")
            self.restarts.add(task)
            task.add_done_callback(self.restarts.discard)

    async def restart(self, component: Component) -> None:
        await asyncio.sleep(RESTART_SECONDS)
        if component.should_run and component.pid is None:
            self.spawn(component)


def passes(check: dict[str, str]) -> bool:
    """Return whether a component passes its health check.

    The check is a GET that must be answered with a 2xx, or a Unix socket that must accept a connection.
    """
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
    """Return whether a GET is answered with a 2xx. With `authority`, the path of a CA certificate, the GET uses TLS."""
    connection = (
        http.client.HTTPSConnection(address, timeout=2, context=ssl.create_default_context(cafile=authority))
        if authority
        else http.client.HTTPConnection(address, timeout=2)
    )
    with contextlib.closing(connection):
        connection.request("GET", path)
        return 200 <= connection.getresponse().status < 300


def set_up_node(name: str, folder: Path) -> None:
    """Give the node mounts, a loopback device and a host name of its own, and let it forward packets."""
    # The mount with `rprivate` cuts the node's mounts off from this machine. The mount with `rshared` then lets
    # containers propagate mounts within the node.
    for arguments in (
        ("--make-rprivate", "/"),
        ("--make-rshared", "/"),
        ("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"),
        ("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/log"),
        ("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/lib/cni"),
        ("--bind", str(folder / "passwd"), "/etc/passwd"),
        *own_name_servers(folder),
    ):
        subprocess.run(["mount", *arguments], check=True, timeout=10)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    socket.sethostname(name)


def own_name_servers(folder: Path) -> list[tuple[str, ...]]:
    """Return the arguments of `mount` for the node's own resolv.conf.

    The list is empty if the node has no resolv.conf of its own, or the machine has none.
    """
    own, of_machine = folder / "resolv.conf", Path("/etc/resolv.conf")
    return [("--bind", str(own), str(of_machine))] if own.exists() and of_machine.exists() else []


def main() -> None:
    folder = Path(sys.argv[1])
    document = json.loads((folder / "components.json").read_text("utf-8"))
    set_up_node(document["name"], folder)
    # The modes of files in containers must not depend on the umask of the user who ran `up`.
    os.umask(0o022)
    asyncio.run(Node(folder, document["components"]).serve())


if __name__ == "__main__":
    main()

"""An interactive shell in a container, on the terminal of this process.

A shell stays open until the person ends it. Meanwhile the terminal is in raw mode, so the shell receives Ctrl-C and not
the agent. After a failure, container `action` has ended. Then an ephemeral container with the same image, variables and
volumes takes its place. It ends with the pod.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import termios
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.aio import cancelled_on_exit
from agent.cluster.api.client import STRATEGIC_PATCH
from agent.cluster.api.container_ref import ContainerRef
from agent.cluster.api.exec import ExecStream
from agent.cluster.pod.action_order import ACTION
from agent.cluster.supervisor.command import ORDER_FOLDER
from agent.domain.errors import ClusterError
from agent.domain.paths import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cluster.api.client import Client
    from agent.domain.json import Object

# Seconds until the agent closes a shell that is still open.
MAX_SECONDS = 24 * 3600.0
# Every shell expands the variable in its prompt. Only bash knows `\w`.
SHELL = 'cd "$1"; export TERM="$2" PS1=\'$PWD $ \'; command -v bash >/dev/null && exec bash --norc -i; exec sh -i'

# Name of the ephemeral container.
SHELL_CONTAINER = "shell"
# Keeps the ephemeral container running until the pod is deleted: no input ever arrives.
WAIT = "trap 'exit 0' TERM; read -r _"
# Fields of container `action` that the ephemeral container has too.
SAME_FIELDS = ("image", "env", "envFrom", "securityContext", "workingDir")
# Seconds until the ephemeral container must run. The node has its image already.
START_SECONDS = 20.0
# Seconds between two looks at the ephemeral container.
START_POLL_SECONDS = 0.2
# Why a container waits that has not failed.
STARTING = ("", "ContainerCreating", "PodInitializing")


def shell_container(pod: Object, variables: list[Object]) -> Object:
    """Return an ephemeral container that is like container `action` of the pod. `variables` are added to its own."""
    action = next(each for each in pod["spec"]["containers"] if each["name"] == ACTION)
    same = {name: action[name] for name in SAME_FIELDS if name in action}
    return same | {
        "name": SHELL_CONTAINER,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", WAIT],
        "stdin": True,
        "env": [*action.get("env", ()), *variables],
        # Kubernetes allows no `subPath` here. The order's volume is of no use after the commands.
        "volumeMounts": [
            mount
            for mount in action.get("volumeMounts", ())
            if mount["mountPath"] != ORDER_FOLDER and not mount.keys() & {"subPath", "subPathExpr"}
        ],
    }


async def start_like_action(client: Client, namespace: str, name: str, variables: list[Object]) -> ContainerRef:
    """Start an ephemeral container like container `action` of the pod `name`. Return its address when it runs.

    Raises:
        ClusterError: the API server refuses the container, or the container does not run in time.
    """
    path = f"/api/v1/namespaces/{namespace}/pods/{name}"
    # The watch keeps only a small part of each pod.
    pod = await client.request("get", "pods", path)
    body: Object = {"spec": {"ephemeralContainers": [shell_container(pod, variables)]}}
    await client.request(
        "patch", "pods/ephemeralcontainers", f"{path}/ephemeralcontainers", body=body, patch=STRATEGIC_PATCH
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            while not runs(await client.request("get", "pods", path)):  # noqa: ASYNC110 - the API server is asked again
                await asyncio.sleep(START_POLL_SECONDS)
    except TimeoutError as error:
        raise ClusterError(f"container {SHELL_CONTAINER} did not start in {START_SECONDS:g} s") from error
    return ContainerRef(namespace, name, SHELL_CONTAINER)


def runs(pod: Object) -> bool:
    """Return whether the ephemeral container of the pod runs.

    Raises:
        ClusterError: the container has failed.
    """
    statuses = pod.get("status", {}).get("ephemeralContainerStatuses", ())
    state: Object = next((each.get("state", {}) for each in statuses if each["name"] == SHELL_CONTAINER), {})
    failure = state.get("terminated") or state.get("waiting") or {}
    reason = failure.get("reason", "")
    if "terminated" in state or reason not in STARTING:
        raise ClusterError(f"container {SHELL_CONTAINER}: {reason}: {failure.get('message', '')}".rstrip(": "))
    return "running" in state


async def run_shell(client: Client, target: ContainerRef, folder: str) -> int:
    """Run a shell in `folder` of a container on the terminal of this process. Return the exit code of the shell.

    Raises:
        ExecError: the shell could not be started, or its connection broke.
    """
    argv = ["/bin/sh", "-c", SHELL, "sh", folder, os.environ.get("TERM", "xterm")]
    stream = ExecStream(client, target, argv, seconds=MAX_SECONDS, stdin=True, tty=True)
    input_queue: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    async with stream:
        with raw_mode(sys.stdin.fileno()), terminal_input(input_queue):
            sender = asyncio.create_task(send_input(stream, input_queue), name="keys of the shell")
            async with cancelled_on_exit(sender):
                async for chunk in stream:
                    await asyncio.to_thread(write_all, sys.stdout.fileno(), bytes(chunk))
    return stream.exit_code


async def send_input(stream: ExecStream, input_queue: asyncio.Queue[tuple[int, bytes]]) -> None:
    """Send keys and terminal sizes to the shell until cancelled."""
    while True:
        channel, data = await input_queue.get()
        await stream.send(data, channel=channel)


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Put the terminal with descriptor `fd` into raw mode during the `with` block."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def terminal_input(input_queue: asyncio.Queue[tuple[int, bytes]]) -> Iterator[None]:
    """Put typed keys and terminal sizes into the queue during the `with` block. The first item is the current size."""
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()

    def queue_size() -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        data = json.dumps({"Width": size.columns, "Height": size.lines}).encode()
        input_queue.put_nowait((ExecStream.RESIZE, data))

    def queue_keys() -> None:
        data = os.read(fd, 4096)
        if data:
            input_queue.put_nowait((ExecStream.STDIN, data))
        else:
            loop.remove_reader(fd)

    queue_size()
    loop.add_signal_handler(signal.SIGWINCH, queue_size)
    loop.add_reader(fd, queue_keys)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        loop.remove_signal_handler(signal.SIGWINCH)

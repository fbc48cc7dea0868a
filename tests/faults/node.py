"""A scripted cluster: a fake API server, and a simulated node that runs each pod from its scheduling to its end.

A Cluster lives as long as a test. `Points` stops the simulation at one named point until the test lets the simulation
continue, so that a test can kill an agent exactly at this point.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from agent.cluster.in_pod.workspace import take_snapshot
from agent.cluster.packaging import LOG_FOLDER, SNAPSHOT
from agent.cluster.pod.labels import SESSION, WARM
from agent.domain.json import Object
from tests.fakes.shared_api import SharedApi
from tests.fakes.warm_helper import Torn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

# The point after the first of the two requests that delete a pod.
FINAL_PHASE = "delete of the final pod sent"
# Number of bytes that are appended at once to the log of a pod.
AT_ONCE = 1 << 18
# Seconds between two bytes of an exec that a test makes slow.
SLOW = 0.02


class Points:
    """Named points at which an action can be stopped.

    The simulated cluster waits at the point that `held` names, until the test sets `open`.
    """

    def __init__(self, held: str = "") -> None:
        self.held = held
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def at(self, point: str) -> bool:
        """Wait until the test sets `open`, if `point` is the point `held`. Return whether the method has waited."""
        if point != self.held or self.open.is_set():
            return False
        self.reached.set()
        await self.open.wait()
        return True


class Cluster(SharedApi):
    """A fake API server with a simulated node.

    `script` is the log of a pod. Its items are the bytes of a line, or the text of a marker ("s:1" is the start of
    command 1).
    """

    def __init__(self, points: Points, folder: Path, script: Sequence[bytes | str], files: dict[str, bytes]) -> None:
        super().__init__()
        self.points = points
        self.folder = folder
        self.script = script
        self.files = files
        self.runs_of_pods: dict[str, asyncio.Task[None]] = {}
        self.pace: Callable[[int], Awaitable[None]] | None = None
        self.commands = sum(1 for each in script if isinstance(each, str) and each.startswith("s:"))
        # A kubelet reports the final phase of a deleted pod about a second before it removes the pod.
        self.slow_removal = points.held == FINAL_PHASE
        self.warm_step = self.at_warm_step
        # The name of the pod of each run of the commands.
        self.runs_of_commands: list[str] = []

    def add_routes(self, router: web.UrlDispatcher) -> None:
        super().add_routes(router)

    async def close(self) -> None:
        """Stop the simulated runs of all pods."""
        for run in self.runs_of_pods.values():
            run.cancel()
        await asyncio.gather(*self.runs_of_pods.values(), return_exceptions=True)

    # ---- requests to the API, which can wait at a point

    async def on_create(self, request: web.Request) -> web.Response:
        """Create a pod, and start a task that simulates the run of the pod."""
        if await self.points.at("accepted"):
            return web.Response(status=503)
        answer = await super().on_create(request)
        if answer.status == 201:
            name = (await request.json())["metadata"]["name"]
            self.runs_of_pods[name] = asyncio.create_task(self.run_pod(name), name=f"run of {name}")
        await self.points.at("pod created")
        return answer

    async def on_patch_pod(self, request: web.Request) -> web.Response:
        """Patch a pod. The claim of a warm pod may wait at a point after it was applied."""
        claims = WARM in (await request.json())["metadata"].get("labels", {})
        answer = await super().on_patch_pod(request)
        if claims and await self.points.at("pod claimed"):
            return web.Response(status=503)
        return answer

    async def at_warm_step(self, name: str, step: str) -> None:
        """Wait at a point of a delivery. If the test has killed the agent meanwhile, the exec is broken."""
        await self.notify()
        if await self.points.at(step):
            raise Torn

    async def on_secret(self, request: web.Request) -> web.Response:
        answer = await super().on_secret(request)
        await self.points.at("Secret created")
        return answer

    async def on_delete(self, request: web.Request) -> web.Response:
        if await self.points.at("delete sent"):
            return web.Response(status=503)
        pod = self.pods.get(request.match_info["name"], {})
        if pod.get("status", {}).get("phase") == "Succeeded" and await self.points.at(FINAL_PHASE):
            return web.Response(status=503)
        answer = await super().on_delete(request)
        await self.stop_helper(request.match_info["name"])
        await self.points.at("deleted")
        return answer

    async def stop_helper(self, name: str) -> None:
        """End container `helper` of a pod that is being deleted and whose commands have ended."""
        statuses = self.pods.get(name, {}).get("status", {}).get("containerStatuses", ())
        if any(each["name"] == "action" and "terminated" in each["state"] for each in statuses):
            ended = {"name": "helper", "state": {"terminated": {"exitCode": 0, "finishedAt": now()}}}
            others = [each for each in statuses if each["name"] != "helper"]
            await self.change_status(name, phase="Succeeded", containerStatuses=[*others, ended])

    async def on_exec(self, request: web.Request) -> web.StreamResponse:
        """Run the program that copies files out of a pod, and send the program's output in two messages.

        The program reads the simulated workspace of the pod.
        """
        if LOG_FOLDER in request.query.getall("command"):
            return await super().on_exec(request)
        socket, process = await self.start_collector(request)
        data, _ = await process.communicate()
        half = len(data) // 2
        try:
            if request.get("fault"):
                await self.spoil(socket, request, data)
                return socket
            await socket.send_bytes(b"\x01" + data[:half])
            await self.points.at("files half sent")
            await socket.send_bytes(b"\x01" + data[half:])
            await socket.send_bytes(b'\x03{"metadata":{},"status":"Success"}')
        except ConnectionError:
            # A ConnectionError means that the test has killed the agent that sent the exec.
            pass
        return socket

    async def start_collector(self, request: web.Request) -> tuple[web.WebSocketResponse, asyncio.subprocess.Process]:
        """Accept an exec of the program that copies files out of a pod, and start this program on this machine.

        The program reads the simulated workspace of the pod.
        """
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        name = request.match_info["name"]
        paths = {SNAPSHOT: str(self.folder / f"{name}.snapshot"), "/workspace": str(self.workspace(name))}
        argv = [paths.get(word, word) for word in request.query.getall("command")]
        process = await asyncio.create_subprocess_exec(sys.executable, *argv[1:], stdout=asyncio.subprocess.PIPE)
        return socket, process

    async def spoil(self, socket: web.WebSocketResponse, request: web.Request, data: bytes) -> None:
        """Send `data`, the output of an exec, as the fault of the request demands.

        With the fault `half`, send only the first half and abort the connection. With `slow`, send one byte at a time.
        """
        if request["fault"] == "half":
            await socket.send_bytes(b"\x01" + data[: len(data) // 2])
            assert request.transport is not None
            request.transport.abort()
            return
        for byte in data:
            await socket.send_bytes(bytes([1, byte]))
            await asyncio.sleep(SLOW)

    def workspace(self, name: str) -> Path:
        """Return the folder on this machine with the workspace of the pod `name`."""
        return self.folder / f"{name}.workspace"

    # ---- the simulated node

    async def run_pod(self, name: str) -> None:
        """Simulate the run of a pod from its scheduling to its end."""
        if WARM in self.pods[name]["metadata"]["labels"]:
            await self.run_warm_pod(name)
            return
        session = json.loads(self.pods[name]["metadata"]["annotations"][SESSION])
        await self.change_status(name, conditions=[{"type": "PodScheduled", "status": "True"}])
        await self.points.at("scheduled")
        await self.change_status(name, containerStatuses=[waiting("action"), waiting("helper")])
        await self.wait_for(lambda: any(each.startswith(f"{name}-") for each in self.secrets))
        await self.points.at("pulling")
        clone = {"name": "repository", "state": {"running": {"startedAt": now()}}}
        await self.change_status(name, initContainerStatuses=[clone])
        await self.points.at("cloning")
        self.make_workspace(name)
        cloned = {"name": "repository", "state": {"terminated": {"exitCode": 0, "finishedAt": now()}}}
        await self.begin_log(name)
        both = [running("action"), running("helper")]
        await self.change_status(name, phase="Running", initContainerStatuses=[cloned], containerStatuses=both)
        await self.points.at("running")
        await self.run_commands(name, session["nonce"])

    async def run_warm_pod(self, name: str) -> None:
        """Simulate a warm pod: it waits for an order, and then runs the commands."""
        self.make_workspace(name)
        await self.run_idle(name)
        helper = self.warm_helper(name)
        await self.wait_for(lambda: bool(helper.orders))
        await self.begin_log(name)
        await self.run_commands(name, helper.orders[0]["nonce"])

    def make_workspace(self, name: str) -> None:
        self.workspace(name).mkdir()
        (self.workspace(name) / "cloned").write_text("not one of the action's own files")
        take_snapshot(str(self.workspace(name)), str(self.folder / f"{name}.snapshot"))

    async def run_commands(self, name: str, nonce: str) -> None:
        """Simulate the commands of a pod, from the first marker to the end of container `action`."""
        self.runs_of_commands.append(name)
        await self.write(name, nonce)
        for path, data in self.files.items():
            (self.workspace(name) / path).write_bytes(data)
        message = f"sealci {nonce} completed {self.commands}\nsealci {nonce} end 0\n"
        terminated = {"exitCode": 0, "reason": "Completed", "message": message, "finishedAt": now()}
        ended = {"name": "action", "state": {"terminated": terminated}}
        await self.change_status(name, containerStatuses=[ended, running("helper")])
        await self.points.at("container ended")

    async def write(self, name: str, nonce: str) -> None:
        """Write the log of a pod. Markers in the log carry `nonce`.

        In the middle of one line, the method waits at the point "mid-line".
        """
        waits = b""
        for number, line in enumerate(self.script):
            if self.pace is not None:
                await self.pace(number)
            text = f"\x1esealci:{nonce}:{line}\n".encode() if isinstance(line, str) else line
            if number == len(self.script) // 2:
                half = len(text) // 2
                await self.put_log(name, waits + text[:half])
                await self.points.at("mid-line")
                text, waits = text[half:], b""
            waits += text
            if number == 0 and self.points.held == "first marker":
                await self.put_log(name, waits)
                await self.points.at("first marker")
                waits = b""
            if self.pace is not None or len(waits) > AT_ONCE or number == len(self.script) - 1:
                await self.put_log(name, waits)
                waits = b""
        self.helpers[name].end()
        await self.notify()

    async def put_log(self, name: str, data: bytes) -> None:
        self.helpers[name].write(data)
        await self.notify()

    async def change_status(self, name: str, **status: Any) -> None:
        """Change fields of a pod's status. Do nothing if the pod is gone."""
        if name in self.pods:
            await self.status(name, **status)

    async def expire(self) -> None:
        """End every pod as a kubelet does when the activeDeadlineSeconds of the pod are over."""
        await self.close()
        for name, pod in list(self.pods.items()):
            over = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": now()}}
            statuses = pod.get("status", {}).get("containerStatuses", ())
            ended = [each if "terminated" in each["state"] else {**each, "state": over} for each in statuses]
            await self.change_status(name, phase="Failed", reason="DeadlineExceeded", containerStatuses=ended)


def now() -> str:
    """Return the current time in the format of the Kubernetes API."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting(name: str) -> Object:
    """Return the status of a container that the kubelet is creating."""
    return {"name": name, "state": {"waiting": {"reason": "ContainerCreating"}}}


def running(name: str) -> Object:
    """Return the status of a running container."""
    return {"name": name, "started": True, "state": {"running": {"startedAt": now()}}}

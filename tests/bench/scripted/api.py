"""A scripted Kubernetes API server as a process: the command of a pod determines what the pod does.

    python -m tests.bench.scripted.api CERTIFICATE KEY

The process prints its port. For each line of its standard input, the process prints a line of JSON with its counters:
requests by verb and resource, CPU seconds, connections, and the numbers of created and deleted pods. The process ends
when the input ends. Like a real API server, it speaks TLS and sends every event to its watches.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from agent.cluster.packaging import LOG_FOLDER
from agent.domain.json import Object
from tests.bench.scripted.archive import archive
from tests.bench.scripted.connection import Connection
from tests.bench.scripted.feed import Feed, fits, selector_of
from tests.bench.scripted.life import PodLife

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.scripted.connection import Asked


BOOKMARK = 30.0
GRACE = 0.05
FRAME = 32 * 1024
# Number of bytes of a block that the helper's program reads from the log's file.
BLOCK = 256 * 1024
SUCCESS = b'\x03{"metadata":{},"status":"Success"}'
VERBS = {"POST": "create", "GET": "get", "DELETE": "delete", "PATCH": "patch"}


class Api:
    """The scripted API server with its pods, Leases and counters. It lives as long as the process."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.requests: Counter[str] = Counter()
        self.version = 1000
        self.lives: dict[str, PodLife] = {}
        self.made = self.gone = self.most = 0
        self.leases: dict[str, Object] = {}
        self.feeds = {"pods": Feed("Pod"), "leases": Feed("Lease")}
        self.followers: dict[str, list[Connection]] = {}
        self.background: set[asyncio.Task[None]] = set()

    # ---- requests

    def on_request(self, connection: Connection, request: Asked) -> None:
        path = request.path.split("/")
        resource = path[6] if path[1] == "apis" else path[5] if len(path) > 5 else path[1]
        rest = path[7:] if path[1] == "apis" else path[6:]
        verb = "watch" if request.query.get("watch") == "true" else VERBS[request.method]
        verb = "list" if verb == "get" and not rest and resource != "version" else verb
        resource = "/".join([resource, *rest[1:]])
        verb = "create" if resource == "pods/exec" else verb
        self.requests[f"{verb} {resource}"] += 1
        answers: dict[str, Callable[[Connection, Asked, str], None]] = {
            "create pods": self.create, "delete pods": self.delete, "get pods/log": self.follow,
            "create pods/exec": self.exec, "get pods": self.get, "list pods": self.list, "watch pods": self.watch,
            "list leases": self.list, "watch leases": self.watch, "patch leases": self.lease,
            "create leases": self.lease, "delete leases": self.lease,
        }  # fmt: skip
        name = rest[0] if rest else resource
        answers.get(f"{verb} {resource}", self.other)(connection, request, name)

    def other(self, connection: Connection, request: Asked, name: str) -> None:
        """Answer a request that needs no pod and no Lease with a constant, so that the agent can continue."""
        if name == "version":
            connection.answer(200, b'{"major":"1","minor":"37","gitVersion":"v1.37.2"}')
        elif request.method == "POST":
            connection.answer(201, request.body)
        else:
            connection.answer(200, b'{"metadata":{"resourceVersion":"1"},"items":[]}')

    # ---- pods

    def create(self, connection: Connection, request: Asked, name: str) -> None:
        """Create a pod, and schedule the changes of its state up to the start of its commands."""
        self.made += 1
        life = PodLife(request.body, f"7d9f1c1e-0000-4000-8000-{self.made:012d}", self.made)
        if life.name in self.lives:
            connection.answer(409, b'{"kind":"Status","message":"already exists","code":409}')
            return
        self.lives[life.name] = life
        self.most = max(self.most, len(self.lives))
        connection.answer(201, self.notify(life, b"ADDED"))
        loop, script = asyncio.get_running_loop(), life.script
        loop.call_later(0.002, self.step, life, life.bind)
        loop.call_later(script.start / 2, self.step, life, life.creating)
        loop.call_later(script.start, self.run, life)

    def notify(self, life: PodLife, kind: bytes = b"MODIFIED") -> bytes:
        """Send the current state of a pod to the watches, in an event of type `kind`. Return the pod as JSON."""
        self.version += 1
        text = life.text(self.version)
        self.feeds["pods"].send(kind, self.version, life.labels, text)
        return text

    def step(self, life: PodLife, change: Callable[[], None]) -> None:
        """Call `change`, which changes the status of a pod, and notify the watches.

        Do nothing if the pod is deleted.
        """
        if self.lives.get(life.name) is life and not life.deleted:
            change()
            self.notify(life)

    def run(self, life: PodLife) -> None:
        """Set a pod to running and begin its log. Schedule later log lines, and the end of the pod's commands."""
        self.step(life, life.running)
        self.write(life, life.marker("s:1"))
        loop, script = asyncio.get_running_loop(), life.script
        until = loop.time() + script.life - script.start
        if script.flood:
            self.start(self.flood(life, until))
            return
        self.write(life, life.stamped())
        if script.every:
            loop.call_later(script.every, self.line, life, until)
        loop.call_at(until, self.end, life)

    def line(self, life: PodLife, until: float) -> None:
        """Write one line to a pod's log and schedule the next line.

        Do nothing if the event loop's time is `until` or later.
        """
        loop = asyncio.get_running_loop()
        if self.lives.get(life.name) is life and loop.time() < until:
            self.write(life, life.stamped())
            loop.call_later(life.script.every, self.line, life, until)

    async def flood(self, life: PodLife, until: float) -> None:
        """Write to a pod's log at full speed. End the pod's commands when the event loop's time is `until`.

        The speed is limited only by the clients that follow the log.
        """
        loop = asyncio.get_running_loop()
        while self.lives.get(life.name) is life and loop.time() < until:
            followers = self.followers.get(life.name, [])
            block = life.append(flood_of(life), stored=False) if followers else b""
            for connection in followers:
                connection.send(block)
                await connection.room.wait()
            await asyncio.sleep(0 if followers else 0.01)
        self.end(life)

    def write(self, life: PodLife, text: bytes) -> None:
        """Append text to the log of a pod, and send its frame to the connections that follow this log."""
        frame = life.append(text)
        for connection in self.followers.get(life.name, ()):
            connection.send(frame)

    def end(self, life: PodLife) -> None:
        """End the commands of a pod with success, and end its log."""
        if self.lives.get(life.name) is not life:
            return
        last = [life.marker(f"f:{number}:0") for number in range(1, len(life.commands) + 1)]
        self.write(life, b"".join([*last, life.marker("l:0:0")]))
        frame = life.end_log()
        for connection in self.followers.get(life.name, ()):
            connection.send(frame)
        self.step(life, life.ended)

    def get(self, connection: Connection, request: Asked, name: str) -> None:
        life = self.lives.get(name)
        if life is None:
            connection.answer(404, missing(name))
        else:
            connection.answer(200, life.text(self.version))

    def follow(self, connection: Connection, request: Asked, name: str) -> None:
        """Send the helper's stdout. With `follow=true`, also send what the helper writes later."""
        life = self.lives.get(name)
        if life is None:
            connection.answer(404, missing(name))
            return
        connection.begin(b"text/plain")
        connection.send(b"".join(life.stdout))
        if request.query.get("follow") != "true":
            connection.end()
            return
        followers = self.followers.setdefault(name, [])
        followers.append(connection)
        connection.on_lost = lambda: followers.remove(connection) if connection in followers else None

    def delete(self, connection: Connection, request: Asked, name: str) -> None:
        """Delete a pod, after its container `helper` has ended."""
        life = self.lives.get(name)
        if life is None or json.loads(request.body or b"{}").get("preconditions", {}).get("uid", life.uid) != life.uid:
            connection.answer(404 if life is None else 409, missing(name))
            return
        life.deleting()
        connection.answer(200, self.notify(life))
        asyncio.get_running_loop().call_later(GRACE, self.forget, life)

    def forget(self, life: PodLife) -> None:
        """Remove a pod, send the event DELETED to the watches, and end the connections that follow its log."""
        if self.lives.get(life.name) is life:
            del self.lives[life.name]
            self.gone += 1
            self.notify(life, b"DELETED")
            for connection in self.followers.pop(life.name, ()):
                connection.end()

    def exec(self, connection: Connection, request: Asked, name: str) -> None:
        """Answer an exec of the program `log` with the log file, any other exec with the archive of the pod's file."""
        life = self.lives.get(name)
        if life is None:
            connection.answer(404, missing(name))
            return
        connection.upgrade(request.key)
        if request.command[-3] == LOG_FOLDER:
            self.start(self.send_log(connection, life, int(request.command[-2]), request.command[-1] == "follow"))
        else:
            self.start(self.stream(connection, life.script.file))

    async def send_log(self, connection: Connection, life: PodLife, offset: int, follow: bool) -> None:
        """Send the log file as the program `log` does. If `flood` is set, the pod writes as fast as this exec reads."""
        while connection.is_open:
            if life.script.flood and follow and not life.log_ended and offset == life.log_size:
                life.append(flood_of(life) * 8, stored=False)
            ended = life.log_ended
            if data := life.read(offset, BLOCK):
                block = b'{"at": %d, "bytes": %d}\n%b' % (offset, len(data), data)
                for at in range(0, len(block), FRAME):
                    connection.message(b"\x01" + block[at : at + FRAME])
                offset += len(data)
                await connection.room.wait()
                await asyncio.sleep(0)
            elif ended or not follow:
                report = b'{"end": {"size": %d, "dropped": 0}}\n' if ended else b'{"now": %d}\n'
                connection.message(b"\x01" + report % offset)
                connection.message(SUCCESS)
                return
            else:
                await asyncio.sleep(0.04)

    async def stream(self, connection: Connection, size: int) -> None:
        """Send the archive of a file of `size` bytes in the frames of an exec, no faster than the client reads."""
        for block in archive(size):
            for at in range(0, len(block), FRAME):
                connection.message(b"\x01" + block[at : at + FRAME])
            await connection.room.wait()
            await asyncio.sleep(0)
        connection.message(SUCCESS)

    def start(self, work: Any) -> None:
        """Run a coroutine as a task in the background, and keep a reference to the task until it ends."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    # ---- lists, watches, Leases

    def list(self, connection: Connection, request: Asked, name: str) -> None:
        """Answer with a list of the pods that the request's label selector matches, or of all Leases."""
        selector = selector_of(request.query)
        if name == "pods":
            found = [life.text(self.version) for life in self.lives.values() if fits(selector, life.labels)]
        else:
            found = [json.dumps(each).encode() for each in self.leases.values()]
        connection.answer(200, b'{"metadata":{"resourceVersion":"%d"},"items":[%b]}' % (self.version, b",".join(found)))

    def watch(self, connection: Connection, request: Asked, name: str) -> None:
        self.feeds[name].watch(connection, request.query)

    def lease(self, connection: Connection, request: Asked, name: str) -> None:
        """Create, renew or delete a Lease, as the method of the request demands."""
        body = json.loads(request.body or b"{}")
        name = body["metadata"]["name"] if request.method == "POST" else name
        found = self.leases.get(name)
        if request.method == "DELETE" or (request.method == "PATCH" and found is None):
            gone = self.leases.pop(name, None)
            if gone is not None:
                self.notify_lease(b"DELETED", gone)
            connection.answer(404 if gone is None else 200, b"{}" if gone else missing(name))
            return
        lease = {"metadata": {"uid": f"uid-{name}"}} if found is None else found
        lease = lease | body | {"metadata": lease["metadata"] | body["metadata"]}
        self.leases[name] = lease
        connection.answer(201 if found is None else 200, self.notify_lease(b"MODIFIED" if found else b"ADDED", lease))

    def notify_lease(self, kind: bytes, lease: Object) -> bytes:
        """Send the current state of a Lease to the watches, in an event of type `kind`. Return the Lease as JSON."""
        self.version += 1
        lease["metadata"]["resourceVersion"] = str(self.version)
        text = json.dumps(lease).encode()
        self.feeds["leases"].send(kind, self.version, lease["metadata"]["labels"], text)
        return text

    # ---- counters and bookmarks

    def seen(self) -> Object:
        """Return the counters of this server as they are now, for the benchmark."""
        return {
            "requests": dict(self.requests),
            "cpu": time.process_time(),
            "connections": len(self.connections),
            "made": self.made,
            "gone": self.gone,
            "alive": len(self.lives),
            "most": self.most,
        }

    async def serve(self, certificate: str, key: str) -> None:
        loop = asyncio.get_running_loop()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = await loop.create_server(lambda: Connection(self), "127.0.0.1", 0, ssl=context, backlog=1000)
        print(server.sockets[0].getsockname()[1], flush=True)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        marks = asyncio.create_task(self.bookmarks(), name="bookmarks")
        while await reader.readline():
            print(json.dumps(self.seen()), flush=True)
        marks.cancel()
        server.close()

    async def bookmarks(self) -> None:
        """Send a bookmark to every watch, every BOOKMARK seconds."""
        while True:
            await asyncio.sleep(BOOKMARK)
            for feed in self.feeds.values():
                feed.bookmark(self.version)


def flood_of(life: PodLife) -> bytes:
    """Return the text that a pod with `flood` writes to its log in one step."""
    return life.stamped() * (FRAME // life.script.size)


def missing(name: str) -> bytes:
    """Return the body of an answer for a missing object."""
    return json.dumps({"kind": "Status", "message": f'pods "{name}" not found', "code": 404}).encode()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(Api().serve(*sys.argv[1:3]))

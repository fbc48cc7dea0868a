"""A minimal scheduler for SealCI agents: the contract in one file, with its state in memory.

It reads orders from its standard input, and prints the events of the agents. The token is optional.
    mkfifo orders
    python docs/minimal_scheduler.py 127.0.0.1:7090 TOKEN <>orders &
    echo "debian:12 make test" >orders      queue an action: an image and one command
    echo "cancel 1" >orders                 cancel action 1
"""

import asyncio
import hashlib
import sys
from types import SimpleNamespace

import grpc

# Made by grpc_tools.protoc from proto/sealci/agent/v1/agent.proto. A scheduler of your own has its own copy.
from agent.protocol.wire import agent_pb2 as wire
from agent.protocol.wire import agent_pb2_grpc

INTERVAL, GRACE = 10, 60  # seconds between two Health messages; seconds until the next attempt of a lost agent's action
LONGEST_UPLOAD, PINGS = 64 << 20, [("grpc.http2.min_ping_interval_without_data_ms", 10_000)]  # bytes; agents ping


class Work:
    """One action and what is stored of its newest attempt. The event with number n is `events[n - 1]`."""

    def __init__(self, action):
        self.action, self.cancel, self.ended = action, None, False
        self.start()

    def start(self):
        """Wait for an agent, with nothing stored. `stream` becomes the stream of the agent that owns the attempt."""
        self.claim, self.events, self.files, self.stream, self.waiting = 1, [], {}, None, True


def key_of(session):
    return {"action_id": session.action_id, "attempt": session.attempt, "claim": session.claim}


class Scheduler(agent_pb2_grpc.SchedulerServicer):
    def __init__(self, token=""):
        self.works, self.streams, self.token = {}, {}, token

    def order(self, line):
        first, _, rest = line.strip().partition(" ")
        if first == "cancel" and (work := self.works.get(rest)) is not None:
            work.cancel = wire.Cancel(action_id=rest, attempt=work.action.attempt, message="by request")
            if work.stream is not None:
                self.send(work.stream, cancel=work.cancel)
        elif rest:
            name = str(len(self.works) + 1)
            action = wire.Action(action_id=name, attempt=1, claim=1, name=name, image=first, commands=[rest])
            self.works[name] = Work(action)
            self.dispatch()

    def send(self, stream, **message):
        stream.outgoing.put_nowait(wire.SchedulerMessage(**message))

    def dispatch(self):
        for work in self.works.values():
            stream = next((each for each in self.streams.values() if each.free > 0), None)
            if work.waiting and not work.cancel and stream is not None:
                work.waiting, work.stream = False, stream
                stream.free -= 1
                self.send(stream, action=work.action)

    async def Connect(self, requests, context):
        first = await anext(requests, None)
        await self.check_token(context)
        if first is None or not first.HasField("register"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with Register")
        if first.register.protocol_version != 1:
            yield wire.SchedulerMessage(refused={"why": "PROTOCOL_VERSION", "message": "only version 1 is supported"})
            return
        stream = SimpleNamespace(pod=first.register.agent_id.partition(".")[0], free=0, outgoing=asyncio.Queue())
        if (older := self.streams.get(stream.pod)) is not None:
            older.outgoing.put_nowait(None)
        self.streams[stream.pod] = stream  # without a free slot, because no action comes before the first Health
        self.send(stream, registered={"health_interval": {"seconds": INTERVAL}, "resume_grace": {"seconds": GRACE}})
        for state in first.register.sessions:
            self.answer(stream, state)
        reader = asyncio.create_task(self.read(stream, requests))
        try:
            while (message := await stream.outgoing.get()) is not None:
                yield message
        finally:
            reader.cancel()
            if self.streams.get(stream.pod) is stream:
                del self.streams[stream.pod]
            for work in self.works.values():
                if work.stream is stream and not work.ended:
                    asyncio.get_running_loop().call_later(GRACE, self.start_next_attempt, work, stream)

    def start_next_attempt(self, work, lost):
        if work.stream is lost and not work.ended:  # else an agent has resumed or adopted the session
            work.action.attempt += 1
            work.start()
            self.dispatch()

    async def read(self, stream, requests):
        """Read until the agent ends its side, is silent for three intervals, or has skipped events."""
        try:
            while (message := await asyncio.wait_for(anext(requests, None), 3 * INTERVAL)) is not None:
                match message.WhichOneof("message"):  # a message of an unknown kind is ignored
                    case "health":
                        ready = message.health.status == wire.Health.READY
                        stream.free = message.health.slots - message.health.running if ready else 0
                        self.send(stream, ack={})
                        self.dispatch()
                    case "adopted":
                        self.answer(stream, message.adopted)
                    case "event" if not self.store(stream, message.event):
                        return
        finally:
            stream.outgoing.put_nowait(None)

    def owner(self, stream, session):
        """Return the action of a session. If another attempt or claim owns the action, send Discard and return None."""
        work = self.works.get(session.action_id)
        newest = work is not None and session.attempt == work.action.attempt
        if not newest or session.claim < work.claim:
            return self.send(stream, discard=key_of(session) | {"claimed_by_other": newest})
        work.claim, work.stream, work.waiting = session.claim, stream, False
        return work

    def answer(self, stream, state):
        """Answer a session that an agent holds: with its resume point, or with Discard."""
        if (work := self.owner(stream, state)) is None:
            return
        if work.ended:
            return self.send(stream, discard=key_of(state) | {"message": "the action has ended"})
        resume = wire.Resume(**key_of(state), seq=len(work.events), pending_cancel=work.cancel)
        for event in work.events:
            resume.cursor = getattr(getattr(event, event.WhichOneof("event") or "log"), "cursor", b"") or resume.cursor
            resume.stage = event.stage.stage or resume.stage
            resume.command = event.command_started.index or resume.command
        resume.secrets.update(work.action.secrets if state.adopted else {})
        self.send(stream, resume=resume)

    def store(self, stream, event):
        """Store an event once and in order, and acknowledge it. Return False if events before this one are missing."""
        if (work := self.owner(stream, event)) is None:
            return True
        if event.HasField("rejected"):
            work.start()  # the next agent begins at number 1 again
            stream.free = 0
        elif event.seq > len(work.events) + 1 - work.ended:
            return False
        elif event.seq > len(work.events):
            work.events.append(event)  # a scheduler for work that matters writes the event to a disk here
            work.ended = event.HasField("finished")
            print(event.action_id, event.WhichOneof("event"), event.log.data or event.finished, flush=True)
        self.send(stream, ack=key_of(event) | {"seq": event.seq})
        self.dispatch()
        return True

    async def UploadArtifacts(self, requests, context):
        await self.check_token(context)
        header, files, path, size, end = wire.UploadHeader(), {}, b"", 0, None
        async for chunk in requests:
            header = chunk.header if chunk.HasField("header") else header
            for part in chunk.parts:
                path = part.file.path or path
                files[path] = files.get(path, b"") + part.data
                size, end = size + len(part.data), part.end if part.HasField("end") else end
                if part.HasField("file_end") and not self.is_valid(path, files[path], part.file_end.sha256):
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"wrong path or sha256: {path!r}")
            if size > LONGEST_UPLOAD:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {LONGEST_UPLOAD} bytes")
        files.pop(b"", None)
        if end is None or (end.files, end.bytes) != (len(files), size):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the upload is not complete")
        work = self.works.get(header.action_id)
        if work is None or (header.attempt, header.claim) != (work.action.attempt, work.claim):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another attempt or claim owns the action")
        work.files = files  # in place of the files of an earlier call
        return wire.UploadReceipt(files=len(files), bytes=size)

    def is_valid(self, path, data, sha256):
        return hashlib.sha256(data).digest() == sha256 and not {b"", b".", b".."} & set(path.split(b"/"))

    async def check_token(self, context):
        if self.token and dict(context.invocation_metadata()).get("authorization") != f"Bearer {self.token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")


async def main(address, token=""):
    scheduler, server = Scheduler(token), grpc.aio.server(options=PINGS)
    agent_pb2_grpc.add_SchedulerServicer_to_server(scheduler, server)
    server.add_insecure_port(address)
    await server.start()
    while line := await asyncio.to_thread(sys.stdin.readline):
        scheduler.order(line)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""The processes of an experiment, and what resources each process uses.

These are the scripted API server, the scheduler and the agents. A `BenchSetup` lives as long as one experiment's `async
with`. Each agent is a process `python -m agent serve` with a configuration file and a kubeconfig. No code of an agent
runs in the process of the benchmark.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml

from agent.domain.json import Object
from tests.bench import machine
from tests.fakes import certificates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


DEADLINE = 60.0
PAUSE = 0.02


class Child:
    """A process of the benchmark.

    It prints its port. Then it reads requests and answers each with a line of JSON.
    """

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    async def ask(self, **order: Any) -> Object:
        """Send a request with the fields `order` to the process. Return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(DEADLINE):
            answer: Object = json.loads(await self.process.stdout.readline())
        return answer

    async def until(self, condition: Callable[[Object], bool], seconds: float = DEADLINE, **order: Any) -> Object:
        """Send a request with the fields `order`, then poll. Return the first answer for which `condition` is true.

        Raises:
            TimeoutError: the condition did not become true within `seconds`.
        """
        async with asyncio.timeout(seconds):
            seen = await self.ask(**order)
            while not condition(seen):
                await asyncio.sleep(PAUSE)
                seen = await self.ask()
        return seen


@asynccontextmanager
async def child(module: str, *arguments: str) -> AsyncIterator[Child]:
    """Run the Python module `module` of the benchmark as a process until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            port = int(await process.stdout.readline())
        yield Child(process, port)
    finally:
        await end_process(process)


async def end_process(process: asyncio.subprocess.Process, number: int = signal.SIGTERM, seconds: float = 10.0) -> None:
    """Send a signal to a process and wait for its end. Kill a process that has not ended after `seconds`."""
    if process.returncode is None:
        process.send_signal(number)
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Costs:
    """The resources that a process uses: used CPU seconds, resident bytes of memory, and open sockets."""

    cpu: float
    rss: int
    sockets: int

    @classmethod
    def of(cls, pid: int) -> Costs:
        """Read the resources of a process from /proc."""
        return cls(machine.cpu_of(pid), machine.memory_of(pid), machine.sockets_of(pid))


@dataclass
class Agent:
    """One replica of the agent. `asked` is the time of the start of its process, in seconds of `time.time`."""

    process: asyncio.subprocess.Process
    asked: float
    port: int

    @property
    def costs(self) -> Costs:
        """Return the resources that the process of this agent uses."""
        return Costs.of(self.process.pid)

    async def metric(self, name: str) -> float:
        """Return the value of the metric `name` of this agent. The metric has no labels."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            text = await response.text()
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"sealci_agent_{name} ")))


@dataclass
class BenchSetup:
    """The scheduler and the agents of an experiment, and the folder with their files."""

    scheduler: Child
    folder: Path
    kubeconfig: Path
    stack: AsyncExitStack
    namespace: str = "bench"
    agents: list[Agent] = field(default_factory=list)

    async def agent(self, *, slots: int, **settings: Object) -> Agent:
        """Start a replica and wait until it is ready."""
        agent = await self.begin(slots=slots, **settings)
        await self.until(lambda seen: seen["ready"] == len(self.agents))
        return agent

    async def end(self, agent: Agent) -> None:
        """Stop a replica and wait until the scheduler no longer counts the replica as registered."""
        await end_process(agent.process)
        self.agents.remove(agent)
        await self.until(lambda seen: len(seen["registered"]) == len(self.agents))

    async def begin(self, *, slots: int, **settings: Object) -> Agent:
        """Start a replica, and return before it is ready."""
        port = free_port()
        values: Object = {
            "scheduler": {"address": f"localhost:{self.scheduler.port}", "tls": {"enabled": False}},
            "agent": {"slots": slots, "pool": "bench", "drain_timeout": 0.1},
            "cluster": {"namespace": self.namespace, "kubeconfig": str(self.kubeconfig)},
            "http": {"host": "127.0.0.1", "port": port},
            "logging": {"format": "json"},
        }
        for section, fields in settings.items():
            values[section] = values.get(section, {}) | fields
        file = self.folder / f"agent-{port}.yaml"
        file.write_text(yaml.safe_dump(values))
        log = (self.folder / f"agent-{port}.log").open("wb")
        self.stack.callback(log.close)
        asked = time.time()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "serve", "--config", str(file)), stderr=log, stdout=log
        )
        self.stack.push_async_callback(end_process, process)
        self.agents.append(Agent(process, asked, port))
        return self.agents[-1]

    async def until(self, condition: Callable[[Object], bool], seconds: float = DEADLINE, **order: Any) -> Object:
        """Send a request to the scheduler, then wait until `condition` is true for its counters. Return the counters.

        Raises:
            TimeoutError: the condition did not become true within `seconds`.
        """
        return await self.scheduler.until(condition, seconds, **order)

    @property
    def cpu(self) -> float:
        """Return the sum of the CPU seconds that the running agents have used."""
        return sum(agent.costs.cpu for agent in self.agents)

    def agent_logs(self) -> str:
        return "".join(file.read_text() for file in sorted(self.folder.glob("agent-*.log")))


@dataclass(kw_only=True)
class ScriptedSetup(BenchSetup):
    """A BenchSetup whose agents use the scripted API server. `api` is the process of that server."""

    api: Child


@asynccontextmanager
async def bench_setup() -> AsyncIterator[ScriptedSetup]:
    """Run the scripted API server and the scheduler while the block runs.

    The caller starts agents by `BenchSetup.agent`.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sealci-bench-")))
        authority = certificates.authority(folder, "ca")
        own = certificates.signed(folder, "localhost", authority, "localhost", address="127.0.0.1")
        api = await stack.enter_async_context(child("tests.bench.scripted.api", str(own.cert), str(own.key)))
        scheduler = await stack.enter_async_context(child("tests.bench.scripted.scheduler"))
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(trust(f"https://127.0.0.1:{api.port}", authority.cert)))
        agents = await stack.enter_async_context(AsyncExitStack())
        yield ScriptedSetup(scheduler, folder, kubeconfig, agents, api=api)


@asynccontextmanager
async def setup_on_cluster(kubeconfig: Path, namespace: str) -> AsyncIterator[BenchSetup]:
    """Run the scheduler while the block runs, for agents that use the cluster of `kubeconfig`."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sealci-bench-")))
        scheduler = await stack.enter_async_context(child("tests.bench.scripted.scheduler"))
        agents = await stack.enter_async_context(AsyncExitStack())
        yield BenchSetup(scheduler, folder, kubeconfig, agents, namespace)


def trust(server: str, authority: Path) -> Object:
    """Return a kubeconfig for the API server at the URL `server`, whose certificate the CA `authority` has signed."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "users": [{"name": "bench", "user": {"token": "bench"}}],
    }


class Load:
    """The CPU load of the whole machine."""

    def __init__(self) -> None:
        self.busy, self.at = machine.busy(), time.monotonic()

    def share(self) -> float:
        """Return the share of the CPU time of all cores that was busy since the last call, from 0 to 1."""
        busy, at = machine.busy(), time.monotonic()
        share = (busy - self.busy) / ((at - self.at) * (os.cpu_count() or 1))
        self.busy, self.at = busy, at
        return share


def free_port() -> int:
    """Return a port on which no process listens now. Another process can take the port before the caller uses it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

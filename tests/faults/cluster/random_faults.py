"""Three replicas of the agent on a real cluster, each behind its own proxies, and random faults from one seed.

RandomFaults lives as long as a test. The faults come from a shuffled deck, so that every kind occurs. The faults of one
replica never overlap. No fault kills or replaces the process of the last replica, so that a leak would show in this
process. The scheduler is a process too. One fault kills the scheduler and starts it again with the same folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml

from tests.bench import machine
from tests.e2e import kube
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.faults.agent_processes import AgentProcesses, Child

REPLICAS = 3
# Seconds until an agent must be ready after its start.
READY = 90.0
# Number of times that each kind of fault is in the deck of faults, which is shuffled when it is empty.
DECK = {
    "kill -9 and restart": 3,
    "freeze and thaw": 2,
    "SIGTERM and replacement": 3,
    "stream fin": 2,
    "stream reset": 3,
    "stream black hole": 1,
    "stream half-open": 1,
    "stream slow": 1,
    "API reset": 3,
    "API latency": 2,
    "API black hole": 1,
    "scheduler kill -9 and restart": 1,
    "apiserver restart": 1,
}
# Faults of parts that all replicas share.
SHARED = ("scheduler kill -9 and restart", "apiserver restart")
# Faults that end the process of a replica. They never hit the last replica.
ENDING = ("kill -9 and restart", "SIGTERM and replacement")


@dataclass(frozen=True)
class Measure:
    """The resources of one agent process: resident memory in bytes, tasks of its event loop, and open sockets."""

    memory: int
    tasks: int
    sockets: int

    def __str__(self) -> str:
        return f"{self.memory / (1 << 20):.1f} MiB, {self.tasks} tasks, {self.sockets} sockets"


class Replica:
    """One replica of the agent. Faults replace its process. Its two proxies live as long as the test."""

    def __init__(self, faults: RandomFaults, number: int) -> None:
        self.faults = faults
        self.number = number
        self.pods = 0
        self.starts = 0
        self.fault = asyncio.Lock()
        self.children: list[Child] = []

    @property
    def child(self) -> Child:
        """Return the current process of the replica."""
        return self.children[-1]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Replica]:
        """Run the replica's two proxies while the block runs: one to the scheduler and one to the API server."""
        seed = self.faults.seed + self.number
        async with Proxy(self.faults.address, seed) as self.stream, Proxy(self.faults.api, seed + 100) as self.cluster:
            yield self

    async def start(self, *, new_pod: bool = False) -> None:
        """Start an agent process for the replica. If `new_pod` is true, the agent gets a new id, as in a new pod."""
        self.pods += new_pod
        self.starts += 1
        name = f"replica-{self.number}-{self.pods}"
        folder = self.faults.folder
        kubeconfig = cluster_of_tests()
        kubeconfig["clusters"][0]["cluster"]["server"] = f"https://{self.cluster.address}"
        (folder / f"{name}.kubeconfig").write_text(json.dumps(kubeconfig))
        settings = self.faults.settings(name, self.stream.address)
        settings["cluster"]["kubeconfig"] = str(folder / f"{name}.kubeconfig")
        config = folder / f"{name}.json"
        config.write_text(json.dumps(settings))
        log = folder / f"{name}-{self.starts}.log"
        self.children.append(await self.faults.processes.start(log, "serve", "--config", str(config)))

    async def get(self, path: str) -> tuple[int, str]:
        """Return status and text of an HTTP request to the agent. The status is 0 if the agent does not answer."""
        found = re.search(r'"port": (\d+)', self.child.log)
        if not found:
            return 0, ""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session,
                session.get(f"http://127.0.0.1:{found[1]}{path}") as answer,
            ):
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""

    async def ready(self) -> None:
        """Wait until the replica's current process is ready."""
        await until(lambda: self.is_ready(), f"replica {self.number} did not become ready", READY)

    async def is_ready(self) -> bool:
        assert self.child.code is None, f"it left with {self.child.code}: {self.child.log}"
        return (await self.get("/readyz"))[0] == 200

    async def measure(self) -> Measure:
        text = (await self.get("/metrics"))[1]
        values = dict(re.findall(r"^(\w+) ([0-9.e+]+)$", text, re.MULTILINE))
        memory, tasks = values["process_resident_memory_bytes"], values["sealci_agent_asyncio_tasks"]
        return Measure(int(float(memory)), int(float(tasks)), machine.sockets_of(self.child.pid))


class RandomFaults:
    """The replicas, their scheduler, and the injected faults."""

    def __init__(self, folder: Path, processes: AgentProcesses, namespace: str, seed: int) -> None:
        self.folder = folder
        self.processes = processes
        self.namespace = namespace
        self.seed = seed
        self.deck: list[str] = []
        self.random = random.Random(seed)
        self.injected: Counter[str] = Counter()
        self.fault = asyncio.Lock()
        self.replicas: list[Replica] = []
        self.schedulers: list[Child] = []
        self.address = ""
        self.api = cluster_of_tests()["clusters"][0]["cluster"]["server"].removeprefix("https://")

    @asynccontextmanager
    async def up(self) -> AsyncIterator[RandomFaults]:
        """Run a scheduler and all replicas while the block runs. Kill the processes that are left at the end."""
        await self.start_scheduler()
        async with AsyncExitStack() as stack:
            for number in range(REPLICAS):
                self.replicas.append(await stack.enter_async_context(Replica(self, number).connected()))
            try:
                for replica in self.replicas:
                    await replica.start(new_pod=True)
                    await replica.ready()
                yield self
            finally:
                for child in [*(each.child for each in self.replicas if each.children), *self.schedulers]:
                    if child.code is None:
                        os.kill(child.pid, signal.SIGCONT)
                        await child.end(signal.SIGKILL)

    async def start_scheduler(self) -> None:
        """Start the scheduler, on any port the first time and on the same port later."""
        listen = self.address or "127.0.0.1:0"
        log = self.folder / f"scheduler-{len(self.schedulers)}.log"
        arguments = ("scheduler", "--listen", listen, "--folder", str(self.store), "--resume-grace", "20s")
        child = await self.processes.start(log, *arguments)
        self.schedulers.append(child)

        async def listens() -> str:
            assert child.code is None, child.log
            found = re.search(r'"address": "([^"]+)"|address=(\S+)', child.log)
            return (found[1] or found[2]) if found else ""

        self.address = await until(listens, "the scheduler did not start", 30)

    @property
    def store(self) -> Path:
        return self.folder / "scheduler"

    def settings(self, name: str, address: str) -> dict[str, Any]:
        """Return the settings of the agent `name`. Short intervals let the agent notice faults soon."""
        return {
            "scheduler": {
                "address": address,
                "tls": {"enabled": False},
                "reconnect_max": "0.5s",
                "keepalive": "2s",
                "register_timeout": "4s",
            },
            "agent": {"id": name, "pool": "churn", "slots": 4, "drain_timeout": "2s"},
            "cluster": {
                "namespace": self.namespace,
                "lease_duration": "6s",
                "lease_renew": "1s",
                "sweep_interval": "5s",
            },
            "environment": {"grace": "1s"},
            "policy": {"default_cpu": "5m", "default_memory": "16Mi"},
            "http": {"host": "127.0.0.1", "port": 0},
            "logging": {"format": "json"},
        }

    # ---- faults

    def inject_next(self, falling: asyncio.TaskGroup) -> None:
        """Inject the next fault of the deck into a random replica, in a new task of the group `falling`."""
        if not self.deck:
            self.deck = [kind for kind, times in DECK.items() for _ in range(times)]
            self.random.shuffle(self.deck)
        kind = self.deck.pop()
        replica = self.random.choice(self.replicas[: -1 if kind in ENDING else None])
        falling.create_task(self.inject(kind, replica, self.random.random()), name=kind)

    async def inject(self, kind: str, replica: Replica, strength: float) -> None:
        """Inject one fault into a replica, and return when the fault has ended.

        `strength`, from 0 to 1, determines the duration of most faults. At most one fault at a time runs on each
        replica, and at most one on the parts that all replicas share.
        """
        async with self.fault if kind in SHARED else replica.fault:
            self.injected[kind] += 1
            await FAULTS[kind](self, replica, strength)

    async def restart(self, replica: Replica, strength: float) -> None:
        """Kill the replica's process, and start a new process in the same pod `2 * strength` seconds later."""
        await replica.child.end(signal.SIGKILL)
        await asyncio.sleep(2 * strength)
        await replica.start()
        await replica.ready()

    async def replace(self, replica: Replica, strength: float) -> None:
        """Stop the replica's process with SIGTERM, then start a process in a new pod. `strength` is not used."""
        assert await replica.child.end(signal.SIGTERM) == 0, replica.child.log
        await replica.start(new_pod=True)
        await replica.ready()

    async def freeze(self, replica: Replica, strength: float) -> None:
        """Freeze the replica's process for 1 to 15 s. Then other agents often consider this agent dead."""
        os.kill(replica.child.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(1 + 14 * strength)
        finally:
            os.kill(replica.child.pid, signal.SIGCONT)

    async def restart_scheduler(self, replica: Replica, strength: float) -> None:
        """Kill the shared scheduler, and start it again in the same folder `2 * strength` seconds later."""
        await self.schedulers[-1].end(signal.SIGKILL)
        await asyncio.sleep(2 * strength)
        await self.start_scheduler()

    async def restart_apiserver(self, replica: Replica, strength: float) -> None:
        await asyncio.to_thread(kube.provider, "restart", "apiserver")


async def for_a_while(proxy: Proxy, seconds: float) -> None:
    """Wait for `seconds`, then end the faults that were injected into the proxy."""
    await asyncio.sleep(seconds)
    proxy.heal()


async def slow(proxy: Proxy, strength: float) -> None:
    """For 1 to 4 s, split the proxy's data into small pieces and delay each piece by up to 0.05 s."""
    proxy.latency, proxy.pieces = 0.05, 500
    await for_a_while(proxy, 1 + 3 * strength)


async def delayed(proxy: Proxy, strength: float) -> None:
    """For 1 to 5 s, delay each piece of the proxy's data by up to 0.3 s."""
    proxy.latency = 0.3
    await for_a_while(proxy, 1 + 4 * strength)


async def hole(proxy: Proxy, strength: float) -> None:
    """Drop all data of the proxy and keep its connections open, for 1 s (`strength` 0) to 10 s (`strength` 1)."""
    proxy.swallow()
    await for_a_while(proxy, 1 + 9 * strength)


async def half(proxy: Proxy, strength: float) -> None:
    """Close the proxy's connections to its target, and send the agent no FIN for 1 to 6 s."""
    proxy.half_open()
    await for_a_while(proxy, 1 + 5 * strength)


async def reset(proxy: Proxy, strength: float) -> None:
    """Reset all connections of the proxy at once. `strength` is not used."""
    proxy.reset()


async def fin(proxy: Proxy, strength: float) -> None:
    """Close all connections of the proxy with FIN at once. `strength` is not used."""
    proxy.fin()


def on_stream(
    fault: Callable[[Proxy, float], Awaitable[None]],
) -> Callable[[RandomFaults, Replica, float], Awaitable[None]]:
    """Return a fault for replicas. It injects `fault` into the proxy between a replica and the scheduler."""
    return lambda _, replica, strength: fault(replica.stream, strength)


def on_api(
    fault: Callable[[Proxy, float], Awaitable[None]],
) -> Callable[[RandomFaults, Replica, float], Awaitable[None]]:
    """Return a fault for replicas. It injects `fault` into the proxy between a replica and the API server."""
    return lambda _, replica, strength: fault(replica.cluster, strength)


FAULTS: dict[str, Callable[[RandomFaults, Replica, float], Awaitable[None]]] = {
    "kill -9 and restart": RandomFaults.restart,
    "freeze and thaw": RandomFaults.freeze,
    "SIGTERM and replacement": RandomFaults.replace,
    "stream fin": on_stream(fin),
    "stream reset": on_stream(reset),
    "stream black hole": on_stream(hole),
    "stream half-open": on_stream(half),
    "stream slow": on_stream(slow),
    "API reset": on_api(reset),
    "API latency": on_api(delayed),
    "API black hole": on_api(hole),
    "scheduler kill -9 and restart": RandomFaults.restart_scheduler,
    "apiserver restart": RandomFaults.restart_apiserver,
}


async def until(condition: Callable[[], Awaitable[Any]], message: str, timeout: float) -> Any:
    """Poll until `condition` is true, and return its value. After `timeout` seconds, fail with `message`."""
    end = asyncio.get_running_loop().time() + timeout
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < end, message
        await asyncio.sleep(0.1)
    return found


def cluster_of_tests() -> Any:
    return yaml.safe_load(Path(kube.kubeconfig()).read_text())

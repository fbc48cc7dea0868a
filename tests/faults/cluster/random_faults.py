"""Three replicas on the real cluster, each behind proxies of its own, and the faults that fall on them, from one seed.

A faults lives as long as a churn. Faults come one after another from a shuffled deck, so that each kind comes; those of
one replica do not overlap, those of different ones do. The last replica is never killed nor replaced: what leaks shows
in it. The scheduler is a process too, and is killed and started again over its folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml

from tests.e2e import kube
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.faults.agent_processes import AgentProcesses, Child

REPLICAS = 3
READY = 90.0
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
SHARED = ("scheduler kill -9 and restart", "apiserver restart")
ENDING = ("kill -9 and restart", "SIGTERM and replacement")


@dataclass(frozen=True)
class Measure:
    """What one agent holds: bytes of memory, tasks of its loop, sockets."""

    memory: int
    tasks: int
    sockets: int

    def __str__(self) -> str:
        return f"{self.memory / (1 << 20):.1f} MiB, {self.tasks} tasks, {self.sockets} sockets"


class Replica:
    """One place of the Deployment: its process may be replaced, its proxies stay."""

    def __init__(self, faults: RandomFaults, number: int) -> None:
        self.faults = faults
        self.number = number
        self.pods = 0
        self.starts = 0
        self.fault = asyncio.Lock()
        self.children: list[Child] = []

    @property
    def child(self) -> Child:
        """The process of now."""
        return self.children[-1]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Replica]:
        """Have the proxies."""
        seed = self.faults.seed + self.number
        async with Proxy(self.faults.address, seed) as self.stream, Proxy(self.faults.api, seed + 100) as self.cluster:
            yield self

    async def start(self, *, new_pod: bool = False) -> None:
        """Start the process: again in the same pod, or in a new one."""
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
        """Ask its port; 0 when it does not answer."""
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
        """Wait until it takes actions."""
        await until(lambda: self.is_ready(), f"replica {self.number} does not become ready", READY)

    async def is_ready(self) -> bool:
        """Whether it takes actions."""
        assert self.child.code is None, f"it left with {self.child.code}: {self.child.log}"
        return (await self.get("/readyz"))[0] == 200

    async def measure(self) -> Measure:
        """Return what it holds."""
        text = (await self.get("/metrics"))[1]
        values = dict(re.findall(r"^(\w+) ([0-9.e+]+)$", text, re.MULTILINE))
        memory, tasks = values["process_resident_memory_bytes"], values["sealci_agent_asyncio_tasks"]
        return Measure(int(float(memory)), int(float(tasks)), sockets_of(self.child.pid))


class RandomFaults:
    """The replicas, their scheduler, and what befalls them."""

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
        """Have a scheduler and all replicas, ready."""
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
        """Start the scheduler: the first time on any port, then on the same."""
        listen = self.address or "127.0.0.1:0"
        log = self.folder / f"scheduler-{len(self.schedulers)}.log"
        arguments = ("scheduler", "--listen", listen, "--folder", str(self.store), "--resume-grace", "20s")
        child = await self.processes.start(log, *arguments)
        self.schedulers.append(child)

        async def listens() -> str:
            assert child.code is None, child.log
            found = re.search(r'"address": "([^"]+)"|address=(\S+)', child.log)
            return (found[1] or found[2]) if found else ""

        self.address = await until(listens, "the scheduler does not listen", 30)

    @property
    def store(self) -> Path:
        """The folder of the scheduler."""
        return self.folder / "scheduler"

    def settings(self, name: str, address: str) -> dict[str, Any]:
        """Return the settings of an agent: quick to notice, so that much happens."""
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
        """Let the next fault fall."""
        if not self.deck:
            self.deck = [kind for kind, times in DECK.items() for _ in range(times)]
            self.random.shuffle(self.deck)
        kind = self.deck.pop()
        replica = self.random.choice(self.replicas[: -1 if kind in ENDING else None])
        falling.create_task(self.inject(kind, replica, self.random.random()), name=kind)

    async def inject(self, kind: str, replica: Replica, strength: float) -> None:
        """Let one fault fall, and pass."""
        async with self.fault if kind in SHARED else replica.fault:
            self.injected[kind] += 1
            await FAULTS[kind](self, replica, strength)

    async def restart(self, replica: Replica, strength: float) -> None:
        """Kill the process; the kubelet starts it again in the same pod."""
        await replica.child.end(signal.SIGKILL)
        await asyncio.sleep(2 * strength)
        await replica.start()
        await replica.ready()

    async def replace(self, replica: Replica, strength: float) -> None:
        """Ask the process to leave; another pod comes in its place."""
        assert await replica.child.end(signal.SIGTERM) == 0, replica.child.log
        await replica.start(new_pod=True)
        await replica.ready()

    async def freeze(self, replica: Replica, strength: float) -> None:
        """Freeze the process, often for long enough to be taken for dead."""
        os.kill(replica.child.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(1 + 14 * strength)
        finally:
            os.kill(replica.child.pid, signal.SIGCONT)

    async def restart_scheduler(self, replica: Replica, strength: float) -> None:
        """Kill the scheduler; it comes again over its folder."""
        await self.schedulers[-1].end(signal.SIGKILL)
        await asyncio.sleep(2 * strength)
        await self.start_scheduler()

    async def restart_apiserver(self, replica: Replica, strength: float) -> None:
        """Restart the API server of the cluster."""
        await asyncio.to_thread(kube.provider, "restart", "apiserver")


async def for_a_while(proxy: Proxy, seconds: float) -> None:
    """Let a fault of a proxy last, then end it."""
    await asyncio.sleep(seconds)
    proxy.heal()


async def slow(proxy: Proxy, strength: float) -> None:
    """Delay and cut up what passes."""
    proxy.latency, proxy.pieces = 0.05, 500
    await for_a_while(proxy, 1 + 3 * strength)


async def delayed(proxy: Proxy, strength: float) -> None:
    """Delay what passes."""
    proxy.latency = 0.3
    await for_a_while(proxy, 1 + 4 * strength)


async def hole(proxy: Proxy, strength: float) -> None:
    """Let nothing pass."""
    proxy.swallow()
    await for_a_while(proxy, 1 + 9 * strength)


async def half(proxy: Proxy, strength: float) -> None:
    """End the far side, and tell nobody."""
    proxy.half_open()
    await for_a_while(proxy, 1 + 5 * strength)


async def reset(proxy: Proxy, strength: float) -> None:
    """Break all connections."""
    proxy.reset()


async def fin(proxy: Proxy, strength: float) -> None:
    """End all connections."""
    proxy.fin()


def on_stream(
    fault: Callable[[Proxy, float], Awaitable[None]],
) -> Callable[[RandomFaults, Replica, float], Awaitable[None]]:
    """Let a fault fall on the way to the scheduler."""
    return lambda _, replica, strength: fault(replica.stream, strength)


def on_api(
    fault: Callable[[Proxy, float], Awaitable[None]],
) -> Callable[[RandomFaults, Replica, float], Awaitable[None]]:
    """Let a fault fall on the way to the API."""
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
    """Wait until something of another process is so: nothing tells of it."""
    end = asyncio.get_running_loop().time() + timeout
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < end, message
        await asyncio.sleep(0.1)
    return found


def cluster_of_tests() -> Any:
    """Return the kubeconfig of the cluster."""
    return yaml.safe_load(Path(kube.kubeconfig()).read_text())


def sockets_of(pid: int) -> int:
    """Count the sockets of a process."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(link).startswith("socket:")
    return count

"""Throughput of artifacts into an object store, compared with a bare upload of the same files from the same container.

The bare upload is a program that knows all URLs, computes no hash, and uses as many connections as the agent's program.
The store is versitygw on this machine. The agent reaches the API server through a proxy, which counts the bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from agent.cluster.in_pod.objects.outgoing import PART_BYTES
from agent.cluster.in_pod.objects.store_client import CONNECTIONS
from agent.objects.errors import xml_field
from agent.objects.store import ObjectStore, part_query
from agent.protocol.wire import agent_pb2 as wire
from agent.settings import ObjectSettings
from tests.bench import bare, machine
from tests.bench.bulk import GO, HOLD
from tests.bench.minimal_scheduler import minimal_scheduler
from tests.bench.observer import Observer
from tests.bench.rows import Row, row
from tests.e2e.lab import DEBIAN
from tests.e2e.object_store import BUCKET, object_store
from tests.faults.cluster.proxied_agent import api_proxy

if TYPE_CHECKING:
    from tests.bench.minimal_scheduler import Agent, Given, MinimalScheduler
    from tests.e2e.object_store import Store
    from tests.faults.proxy import Threaded

GIBIBYTES = 10
MANY = 10_000
# A file of zeros that has no blocks, so that the disk only needs room for the copy in the store.
BIG = f"truncate -s {GIBIBYTES}G big; {HOLD}"
SMALL = f"""
head -c 1024 /dev/urandom > /tmp/one
mkdir many; i=0; while [ $i -lt {MANY} ]; do cp /tmp/one many/$i; i=$((i + 1)); done
{HOLD}
"""
# Stdin has pairs of a URL, a path, an offset and a size. The program prints the seconds of the whole upload.
BARE = f"""
import http.client, json, os, sys, threading, time, traceback
from urllib.parse import urlsplit
threading.excepthook = lambda error: (traceback.print_exception(error.exc_value), os._exit(1))
jobs = json.load(sys.stdin)[::-1]
def work():
    connection = None
    while jobs:
        try:
            url, path, offset, size = jobs.pop()
        except IndexError:
            return
        parts = urlsplit(url)
        connection = connection or http.client.HTTPConnection(parts.netloc)
        connection.putrequest("PUT", parts.path + "?" + parts.query)
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        with open(path, "rb") as file:
            file.seek(offset)
            while size:
                data = file.read(min(size, 262144))
                connection.send(data)
                size -= len(data)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
began = time.time()
threads = [threading.Thread(target=work) for _ in range({CONNECTIONS})]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(time.time() - began)
"""
RUN_BARE = 'kubectl exec -i "$1" -c helper -- python3 -c "$PROGRAM" < "$FILE"'


async def measure(namespace: str) -> list[Row]:
    """Measure one large file and many small ones. Return the rows."""
    with (
        tempfile.TemporaryDirectory(prefix="sealci-bench-") as name,
        object_store(Path(name)) as store,
        api_proxy(Path(name)) as (proxy, kubeconfig),
    ):
        async with minimal_scheduler(namespace) as scheduler, Observer(namespace) as seen:
            agent = await scheduler.agent(
                objects=store.settings | {"fallback": "none"},
                cluster={"kubeconfig": kubeconfig},
                artifacts={"timeout": "30m"},
                environment={"workspace_limit": f"{2 * GIBIBYTES}Gi"},
            )
            upload = Upload(scheduler, agent, seen, store, proxy)
            size = GIBIBYTES << 30
            rows = await upload.rows(f"one file of {GIBIBYTES} GiB", BIG, size / 1e6, "MB/s", ">= 0.5")
            rows += await upload.rows(f"{MANY:,} files of 1 KiB", SMALL, MANY, "files/s", ">= 0.4")
            return rows


class Upload:
    """The parts of one run: the scheduler with its agent, the store, and the proxy in front of the API server."""

    def __init__(
        self, scheduler: MinimalScheduler, agent: Agent, seen: Observer, store: Store, proxy: Threaded
    ) -> None:
        self.scheduler = scheduler
        self.agent = agent
        self.seen = seen
        self.store = store
        self.proxy = proxy

    async def rows(self, what: str, command: str, count: float, unit: str, target: str) -> list[Row]:
        """Upload the files of one action twice: bare, then by the agent. `count` is their number or size."""
        given = self.scheduler.give(DEBIAN, command, artifacts=wire.ArtifactRules())
        await given.until(lambda each: b"made" in each.tail, 300)
        raw = await self.bare(given)
        self.clear()
        resident, crossed, used = machine.memory_of(self.agent.pid), self.proxy.proxy.total, self.agent.cpu
        await bare.sh(self.scheduler.namespace, GO, self.name(given))
        await given.finished(1800)
        seconds = given.finished_at - given.stages[wire.STAGE_ARTIFACTS]
        grown = (machine.peak_of(self.agent.pid) - resident) / (1 << 20)
        bytes_of_api = (self.proxy.proxy.total - crossed) / (1 << 20)
        await self.scheduler.idle()
        stored = sum(file.stat().st_size for file in self.store.objects.values())
        self.clear()
        note = f"{stored / 1e6:.0f} MB stored in {seconds:.1f} s, CPU of the agent {self.agent.cpu - used:.2f} s"
        return [
            row(f"object store: {what}", unit, [count / seconds], floor=[count / raw], target=target, note=note),
            row(f"object store: {what}: through the API server", "MiB", [bytes_of_api], target="<= 1"),
            row(f"object store: {what}: peak of the agent's memory above its start", "MiB", [grown], target="<= 32"),
        ]

    async def bare(self, given: Given) -> float:
        """Return the seconds of a bare upload of the same files."""
        name = self.name(given)
        sizes = await bare.sh(
            self.scheduler.namespace,
            'kubectl exec "$1" -c helper -- sh -c "cd /workspace && find . -type f -printf \'%P %s\\n\'"',
            name,
        )
        jobs = await self.jobs([(path, int(size)) for path, size in (line.split() for line in sizes.splitlines())])
        file = self.scheduler.folder / "bare.json"
        file.write_text(json.dumps(jobs))
        return float(
            await bare.sh(self.scheduler.namespace, RUN_BARE, name, timeout=1800, PROGRAM=BARE, FILE=str(file))
        )

    async def jobs(self, files: list[tuple[str, int]]) -> list[tuple[str, str, int, int]]:
        """Return the requests of a bare upload, without a checksum."""
        store = ObjectStore(ObjectSettings.model_validate(self.store.settings))
        credentials = await store.credentials()
        found = []
        for path, size in files:
            key, place = f"bare/{quote(path)}", f"/workspace/{path}"
            if size <= PART_BYTES:
                found.append((store.sign(credentials, "PUT", key), place, 0, size))
                continue
            _, body = await store.request("POST", key, query={"uploads": ""})
            upload = xml_field(body, "UploadId")
            for number, offset in enumerate(range(0, size, PART_BYTES), 1):
                url = store.sign(credentials, "PUT", key, query=part_query(upload, number))
                found.append((url, place, offset, min(PART_BYTES, size - offset)))
        return found

    def name(self, given: Given) -> str:
        return self.seen.names[given.action.action_id]

    def clear(self) -> None:
        """Delete all objects and parts, so that the disk has room for the next upload."""
        for path in (self.store.folder / BUCKET).iterdir():
            shutil.rmtree(path)

"""Actions per second of one, two and four replicas on a real API server, with kwok in place of a node.

kwok reports that each pod runs, and a second later that the pod has succeeded. The API server, etcd, the scheduler of
Kubernetes and admission are real. kwok simulates the container, its exit code, its termination message, and its log.
The nonce in the termination message comes from the command line of the container. All pods share one log file with one
line. This log lacks the marker that the supervisor writes at the end. So the agent requests each log a second time, one
second after the container's end.
"""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from agent.domain.json import Object
from tests.bench.rate import SCALE, Pace, fill_slots, measure_windows, scaling_rows
from tests.bench.rows import Row, row
from tests.bench.scripted.bench_setup import end_process, free_port, setup_on_cluster
from tests.e2e import kube

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


NODE = "sealci-kwok"
LABEL = "sealci.dev/bench"
SLOTS = 8
WINDOWS = 3
WINDOW = 6.5
LIFE = 1000
READY = 60.0
LINE = "2026-11-24T08:00:00.000000000Z stdout F a line of a simulated pod\n"
TEMPLATE = {
    "spec": {
        "nodeSelector": {LABEL: NODE},
        "tolerations": [{"key": LABEL, "operator": "Exists"}],
    }
}
STATUS = """
{{ $now := Now }}{{ $root := . }}
phase: PHASE
conditions:
- {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: Ready, status: "READY", lastTransitionTime: {{ $now | Quote }}}
- {type: ContainersReady, status: "READY", lastTransitionTime: {{ $now | Quote }}}
containerStatuses:
{{ range .spec.containers }}{{ $nonce := index .command 7 }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: false
  started: true
  restartCount: 0
  containerID: kwok://{{ $root.metadata.uid }}
  state:
    STATE
{{ end }}
hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
podIP: 10.0.0.1
startTime: {{ $now | Quote }}
"""
NODE_STATUS = """
{{ $now := Now }}
conditions:
- {type: Ready, status: "True", reason: KubeletReady, lastHeartbeatTime: {{ $now | Quote }}}
addresses:
- {type: InternalIP, address: {{ NodeIP | Quote }}}
daemonEndpoints: {kubeletEndpoint: {Port: {{ NodePort }}}}
allocatable: {cpu: 1k, memory: 1Ti, pods: 1k, ephemeral-storage: 1Ti}
capacity: {cpu: 1k, memory: 1Ti, pods: 1k, ephemeral-storage: 1Ti}
"""
RUNNING = "running: {startedAt: {{ $now | Quote }}}"
ENDED = (
    "terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}, "
    'message: {{ printf "sealci %s completed 1\\nsealci %s end 0\\n" $nonce $nonce | Quote }}}'
)


async def measure(namespace: str) -> list[Row]:
    """Run the experiment of this module, which takes about two minutes. Return the rows.

    The experiment needs the local cluster, because only there the benchmark can sign a certificate for the simulated
    node.
    """
    async with node():
        paces = {replicas: await pace(namespace, replicas) for replicas in (1, *SCALE)}
    one = paces[1]
    rows = [row(f"actions/s, real API server with kwok, one replica, {SLOTS} slots", "/s", one.rates, note=one.note)]
    for replicas in SCALE:
        rows += scaling_rows(replicas, paces[replicas], one, "kwok")
    return rows


async def pace(namespace: str, replicas: int) -> Pace:
    """Run `replicas` agents with all slots in use. Measure the agents WINDOWS times, for WINDOW seconds each."""
    async with setup_on_cluster(Path(kube.kubeconfig()), namespace) as setup:
        for _ in range(replicas):
            await setup.begin(slots=SLOTS, environment={"pod_template": TEMPLATE})
        found = await measure_windows(setup, await fill_slots(setup), WINDOWS, WINDOW)
        await setup.scheduler.ask(stop=True)
        await setup.until(lambda seen: not any(seen["running"]))
        return found


@asynccontextmanager
async def node() -> AsyncIterator[None]:
    """Run kwok as a node of the cluster while the block runs."""
    binary = Path((await asyncio.to_thread(kube.provider, "build", "kwok", timeout=900)).splitlines()[-1]) / "kwok"
    address = (await asyncio.to_thread(kube.provider, "address")).splitlines()[-1]
    pki = Path(kube.kubeconfig()).parent / "pki"
    with TemporaryDirectory(prefix="sealci-kwok-") as name:
        folder = Path(name)
        (folder / "pod.log").write_text(LINE)
        (folder / "kwok.yaml").write_text(yaml.safe_dump_all(configuration(folder / "pod.log")))
        certificate(folder, pki, address)
        port = free_port()
        log = (folder / "kwok.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            str(binary),
            f"--kubeconfig={kube.kubeconfig()}",
            f"--config={folder / 'kwok.yaml'}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-label-selector={LABEL}={NODE}",
            f"--node-ip={address}",
            f"--node-port={port}",
            f"--server-address=0.0.0.0:{port}",
            "--node-lease-duration-seconds=40",
            f"--tls-cert-file={folder / 'node.crt'}",
            f"--tls-private-key-file={folder / 'node.key'}",
            stdout=log,
            stderr=log,
        )
        try:
            await asyncio.to_thread(kube.apply, simulated())
            async with asyncio.timeout(READY):
                await asyncio.to_thread(kube.kubectl, "wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=50s")
            yield
        finally:
            await asyncio.to_thread(kube.kubectl, "delete", "node", NODE, "--ignore-not-found")
            await end_process(process)
            log.close()


def simulated() -> Object:
    """Return the Node object for the node that kwok simulates."""
    metadata = {"name": NODE, "labels": {LABEL: NODE, "kubernetes.io/hostname": NODE}}
    taint = {"key": LABEL, "value": NODE, "effect": "NoSchedule"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [taint]}}


def configuration(log: Path) -> list[Object]:
    """Return kwok's configuration: the states of pods and of the node, and the path of the log file of all pods."""
    unready = [
        {"key": '.status.conditions.[] | select( .type == "Ready" ) | .status', "operator": "NotIn", "values": ["True"]}
    ]
    alive: Object = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
    fresh = [alive, {"key": ".status.podIP", "operator": "DoesNotExist"}]
    runs = [alive, {"key": ".status.phase", "operator": "In", "values": ["Running"]}]
    deleted = [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}]
    begun = STATUS.replace("PHASE", "Running").replace("READY", "True").replace("STATE", RUNNING)
    over = STATUS.replace("PHASE", "Succeeded").replace("READY", "False").replace("STATE", ENDED)
    logs = {"logs": [{"logsFile": str(log), "follow": True}]}
    return [
        stage("node-ready", unready, {"statusTemplate": NODE_STATUS}, kind="Node"),
        stage("pod-run", fresh, {"statusTemplate": begun}),
        stage("pod-end", runs, {"statusTemplate": over}, LIFE),
        stage("pod-delete", deleted, {"finalizers": {"empty": True}, "delete": True}),
        {
            "apiVersion": "kwok.x-k8s.io/v1alpha1",
            "kind": "ClusterLogs",
            "metadata": {"name": "all"},
            "spec": logs,
        },
    ]


def stage(name: str, when: list[Object], then: Object, milliseconds: int = 0, kind: str = "Pod") -> Object:
    """Return a kwok object of kind Stage, which describes one change of the state of a pod or of the node.

    An object that matches `when` changes to `then` after `milliseconds`.
    """
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": when},
            "delay": {"durationMilliseconds": milliseconds},
            "next": then,
        },
    }


def certificate(folder: Path, pki: Path, address: str) -> None:
    """Sign a certificate for the simulated node with the cluster's CA in `pki`, and write it below `folder`.

    The API server checks this certificate when it fetches a log from the node.
    """
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    own = ("-keyout", folder / "node.key", "-out", folder / "node.crt", "-days", "1", "-subj", f"/CN={NODE}")
    signer = ("-CA", pki / "ca.crt", "-CAkey", pki / "ca.key", "-addext", f"subjectAltName=IP:{address}")
    command = ["openssl", "req", "-x509", *key, *own, *signer, "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)

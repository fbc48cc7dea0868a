"""Artifacts and inputs over a real object store: no byte of them through the API server, the agent or the scheduler."""

from __future__ import annotations

import hashlib
import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.bench import machine
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND, DEBIAN, Lab, open_lab, until
from tests.e2e.object_store import Store, object_store
from tests.e2e.test_adoption import QUICK
from tests.e2e.test_files import NAMES, TRUTH, python
from tests.faults.cluster.proxied_agent import api_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.submission import Report

# The bench `objects` has a file of 10 GiB.
FILES = 10_000
MAKE_FILES = f'import os; os.mkdir("d"); [open(f"d/{{n}}", "w").write(str(n)) for n in range({FILES})]'
CHECK_FILES = f'import os; print(all(open(f"d/{{n}}").read() == str(n) for n in range({FILES})), len(os.listdir("d")))'
GIBIBYTE = 1 << 30
MAKE_BIG = "dd if=/dev/urandom of=part bs=1M count=64 2>/dev/null; for n in $(seq 16); do cat part; done > big; rm part"
WAIT = "echo here; until test -e go; do sleep 0.1; done"
PART = 70_000_000
MAKE_PART = f'import os; open("big", "wb").write(os.urandom({PART}))'
# The container of the commands must not see a URL, a key or the address of the store.
LOOK = """
{ cat /proc/*/environ /proc/*/cmdline | tr '\\000' '\\n'; cat /proc/*/maps /proc/self/mountinfo
  find /.sealci -type f -exec cat {} +; env; set; } 2>/dev/null > /tmp/seen
test -s /tmp/seen && grep -i -e 'x-a[m]z' -e 'aws[_]' -e ':'PORT /tmp/seen || echo clean
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with object_store(tmp_path) as store:
        yield store


@contextmanager
def stored_lab(namespace: str, store: Store, folder: Path, *, issuer: str = "agent", **settings: Any) -> Iterator[Lab]:
    """Yield a lab whose scheduler knows the store. Its agents have credentials only if they are the `issuer`."""
    config = folder / "objects.yaml"
    config.write_text(yaml.safe_dump({"objects": store.settings | {"issuer": issuer}}))
    agents = {"issuer": issuer} if issuer == "scheduler" else store.settings
    options = ("--objects", str(config))
    with open_lab(namespace, folder, scheduler_options=options, objects=agents, **settings) as lab:
        lab.secret_values.append(store.secret)
        yield lab


def stored(report: Report, store: Store, path: str) -> Path:
    """Return the file behind the object that the scheduler has stored for a path."""
    (name,) = [name for name in store.objects if name.endswith(f"/files/{path}")]
    assert report.outcome == ("succeeded", None, 0), report
    return store.objects[name]


def test_files_go_from_pod_to_store_to_pod(namespace: str, store: Store, tmp_path: Path) -> None:
    look = LOOK.replace("PORT", str(store.port))
    with stored_lab(namespace, store, tmp_path, issuer="scheduler") as lab:
        lab.agent()
        reports = lab.run(
            {
                "make": {"image": DEBIAN, "commands": [python(NAMES), python(MAKE_PART), python(TRUTH)]},
                "same": {"image": DEBIAN, "inputs": [{"from": "make"}], "commands": [look, python(TRUTH)]},
            }
        )
        made, same = reports["make"], reports["same"]
        assert same.outcome == ("succeeded", None, 0), same
        truth = json.loads(made.text.splitlines()[-1])
        assert json.loads(same.text.splitlines()[-1]) == truth
        assert same.text.splitlines()[0] == "clean"
        hashes = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in store.objects.values())
        assert hashes == sorted(digest for digest, _ in truth.values())
        assert made.files == {}, "the scheduler stores names"
        seen = json.dumps(lab.observer.states) + kube.kubectl("get", "secrets", "-n", namespace, "-o", "json")
        for word in (store.secret, f":{store.port}", "X-Amz"):
            assert word not in seen

        file, out = tmp_path / "one.yaml", tmp_path / "out"
        # So many files share an object.
        many = "for n in $(seq 40); do echo $n > $n; done"
        file.write_text(yaml.safe_dump({"configuration": {"container": BUSYBOX}, "commands": [many]}))
        submit = [*COMMAND, "submit", str(file), "--scheduler", lab.address, "--plaintext", "--artifacts", str(out)]
        done = subprocess.run(submit, env=kube.environment(), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        numbers = {str(number) for number in range(1, 41)}
        files = [path for path in out.rglob("*") if path.name in numbers]
        assert {path.name for path in files if path.read_text() == f"{path.name}\n"} == numbers
        (pack,) = [name for name in store.objects if "/packs/" in name]
        assert store.objects[pack].stat().st_size == sum(len(number) + 1 for number in numbers)


def test_the_doctor_and_a_store_that_ends(namespace: str, store: Store, tmp_path: Path) -> None:
    checks = [*COMMAND, "doctor", "--only", "objects", "--config", str(tmp_path / "objects.yaml")]
    with stored_lab(namespace, store, tmp_path) as lab:
        lab.agent()
        found = subprocess.run(checks, env=kube.environment(), capture_output=True, text=True, timeout=60, check=False)
        assert found.returncode == 0, found.stdout
        assert "an object was put, read and deleted" in found.stdout
        assert store.objects == {}
        store.stop()
        found = subprocess.run(checks, env=kube.environment(), capture_output=True, text=True, timeout=60, check=False)
        assert found.returncode == 1, found.stdout
        lab.objects = False
        report = lab.one(BUSYBOX, "echo one > one", artifacts={"paths": ["one"]})
        assert report.outcome == ("succeeded", None, 0), report
        assert "the files now go through the scheduler" in report.text
        assert report.files["one"].read_text() == "one\n"


def go_on(namespace: str, action: str) -> None:
    """Create the file `go` in the workspace of an action."""
    pod = pod_of(namespace, action)
    kube.kubectl("exec", "-n", namespace, pod, "-c", "helper", "--", "touch", "/workspace/go")


def pod_of(namespace: str, action: str) -> str:
    """Return the name of the pod that runs an action."""
    pods = json.loads(kube.kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
    sessions = {
        pod["metadata"]["name"]: json.loads(pod["metadata"]["annotations"]["sealci.dev/session"]) for pod in pods
    }
    (name,) = [name for name, session in sessions.items() if session["action_id"].endswith(f"/{action}")]
    return str(name)


def test_many_files_and_a_gibibyte(namespace: str, store: Store, tmp_path: Path) -> None:
    with api_proxy(tmp_path) as (proxy, kubeconfig), stored_lab(namespace, store, tmp_path) as lab:
        agent = lab.agent(cluster={"kubeconfig": kubeconfig})
        pid = agent.process.pid
        commands = [MAKE_BIG, python(MAKE_FILES), WAIT]
        resident = machine.memory_of(pid)
        submission = lab.start({"a": {"image": DEBIAN, "commands": commands, "artifacts": {"paths": ["big", "d/"]}}})
        submission.until_running("a", "here")
        crossed = proxy.proxy.total
        go_on(namespace, "a")
        report = submission.wait()["a"]
        assert stored(report, store, "big").stat().st_size == GIBIBYTE
        across = proxy.proxy.total - crossed
        print(f"through the API server for a GiB and {FILES} files: {across / 1024:.0f} KiB")
        assert across < 1 << 20, "the API server sees paths, hashes and a few URLs only"
        peak = machine.peak_of(pid)
        assert peak - resident < 16 << 20, "the agent holds no file"
        crossed = proxy.proxy.total
        reports = lab.run(
            {
                "make": {"image": DEBIAN, "commands": [python(MAKE_FILES)]},
                "same": {"image": DEBIAN, "inputs": [{"from": "make"}], "commands": [python(CHECK_FILES)]},
            }
        )
        assert reports["same"].text.split() == ["True", str(FILES)]
        across = proxy.proxy.total - crossed
        print(f"through the API server for {FILES} files to the store and back: {across / 1024:.0f} KiB")
        assert across < 3 << 20, "the life of the two pods costs 1 MiB"
        assert machine.peak_of(pid) - resident < 64 << 20


def test_uploads_that_are_cut_by_the_end_of_a_pod_and_of_an_agent(namespace: str, store: Store, tmp_path: Path) -> None:
    with stored_lab(namespace, store, tmp_path, cluster=QUICK["cluster"]) as lab:
        first = lab.agent()
        make = {"image": DEBIAN, "commands": [python(MAKE_PART), "sha256sum big"], "artifacts": {"paths": ["big"]}}
        same = {"image": DEBIAN, "commands": ["sha256sum big"], "inputs": [{"from": "agent"}]}
        store.pause()
        submission = lab.start({"agent": make, "pod": make, "same": same})
        for name in ("agent", "pod"):
            submission.until(name, uploads)
        pod = pod_of(namespace, "pod")
        kube.kubectl("delete", "pod", "-n", namespace, pod, "--grace-period=0", "--force")
        submission.until("pod", lambda report: any(each["event"] == "finished" for each in report.events))
        first.kill()
        second = lab.agent()
        until(lambda: "adopted a session" in second.log, "the second agent did not adopt")
        store.resume()
        reports = submission.wait()
        assert reports["pod"].outcome == ("failed", "ARTIFACTS_FAILED", 0), reports["pod"]
        assert reports["agent"].outcome == ("succeeded", None, 0), reports["agent"]
        assert reports["same"].text == reports["agent"].text
        claims = {name.split("/")[4] for name in store.objects if name.endswith("/files/big")}
        assert "2" in claims, "the adopting agent has a folder of its own"


def uploads(report: Report) -> bool:
    return any(each["event"] == "stage" and each["stage"] == "artifacts" for each in report.events)

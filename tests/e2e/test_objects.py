"""Artifacts and inputs over a real object store: no byte of them through the API server, the agent or the scheduler."""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND, DEBIAN, Lab, open_lab
from tests.e2e.object_store import Store, object_store
from tests.e2e.test_files import NAMES, TRUTH, python

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BIG = 140_000_000
MAKE_BIG = f'python3 -c \'import os; open("big", "wb").write(os.urandom({BIG}))\''
# The container of the commands must not see a URL, a key or the address of the store.
LOOK = "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\000' '\\n' | grep -i -e 'x-a[m]z' || echo clean"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with object_store(tmp_path) as store:
        yield store


@pytest.fixture
def stored_lab(namespace: str, store: Store, tmp_path: Path) -> Iterator[Lab]:
    config = tmp_path / "objects.yaml"
    config.write_text(yaml.safe_dump({"objects": store.settings}))
    options = ("--objects", str(config))
    with open_lab(namespace, tmp_path, scheduler_options=options, objects=store.settings) as lab:
        lab.secret_values.append(store.secret)
        lab.agent()
        yield lab


def test_files_go_from_pod_to_store_to_pod(stored_lab: Lab, store: Store, tmp_path: Path) -> None:
    reports = stored_lab.run(
        {
            "make": {"image": DEBIAN, "commands": [python(NAMES), MAKE_BIG, python(TRUTH)]},
            "same": {"image": DEBIAN, "inputs": [{"from": "make"}], "commands": [LOOK, python(TRUTH)]},
        }
    )
    made, same = reports["make"], reports["same"]
    assert same.outcome == ("succeeded", None, 0), same
    truth = json.loads(made.text.splitlines()[-1])
    assert json.loads(same.text.splitlines()[-1]) == truth
    assert "clean" in same.text
    hashes = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in store.objects.values())
    assert hashes == sorted(digest for digest, _ in truth.values())
    assert made.files == {}, "the scheduler stores names"
    pods = json.dumps(stored_lab.observer.states)
    assert store.secret not in pods
    assert f":{store.port}/" not in pods

    file, out = tmp_path / "one.yaml", tmp_path / "out"
    one = {"configuration": {"container": BUSYBOX}, "commands": ["echo one > one"]}
    file.write_text(yaml.safe_dump(one))
    submit = [*COMMAND, "submit", str(file), "--scheduler", stored_lab.address, "--plaintext", "--artifacts", str(out)]
    done = subprocess.run(submit, env=kube.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.read_text() for path in out.rglob("one")] == ["one\n"]


def test_without_its_store_an_agent_sends_files_to_the_scheduler(stored_lab: Lab, store: Store) -> None:
    checks = [*COMMAND, "doctor", "--only", "objects", "--config", str(stored_lab.folder / "objects.yaml")]
    found = subprocess.run(checks, env=kube.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout
    assert "an object was put, read and deleted" in found.stdout
    assert store.objects == {}
    store.stop()
    found = subprocess.run(checks, env=kube.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1, found.stdout
    stored_lab.objects = False
    report = stored_lab.one(BUSYBOX, "echo one > one", artifacts={"paths": ["one"]})
    assert report.outcome == ("succeeded", None, 0), report
    assert "the files now go through the scheduler" in report.text
    assert report.files["one"].read_text() == "one\n"

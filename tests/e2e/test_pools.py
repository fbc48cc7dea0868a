"""Two pools of agents and a `sealci-agent run` in one Kubernetes namespace: each works only with its own pods."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND, Lab
from tests.e2e.test_run import Terminal, finish

if TYPE_CHECKING:
    from pathlib import Path

WAIT = "echo begun; while [ ! -e go ]; do sleep 0.1; done; echo done"


def pods(lab: Lab) -> list[str]:
    """Return the names of the pods that the agents in the lab's pool have created."""
    return [
        pod["metadata"]["name"] for pod in kube.get("pods", "-n", lab.namespace, "-l", f"sealci.dev/pool={lab.pool}")
    ]


def test_pools_do_not_touch_each_other(own_lab: Lab, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Lab(namespace, tmp_path / "other", cluster={"sweep_interval": "1s"})
    try:
        own_lab.agent(cluster={"sweep_interval": "1s"})
        other.agent()
        mine = own_lab.start({"a": {"image": BUSYBOX, "commands": [WAIT]}})
        mine.until_running("a", "begun")
        theirs = other.start({"a": {"image": BUSYBOX, "commands": [WAIT]}})
        theirs.until_running("a", "begun")
        assert len(pods(own_lab)) == len(pods(other)) == 1

        cleanup = ["cleanup", "--set", f"agent.pool={other.pool}", "--set", f"cluster.namespace={namespace}"]
        dry = subprocess.run(
            [*COMMAND, *cleanup, "--dry-run"],
            env=kube.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert pods(other)[0] in dry.stdout
        assert pods(own_lab)[0] not in dry.stdout
        subprocess.run([*COMMAND, *cleanup], env=kube.environment(), capture_output=True, timeout=60, check=True)
        assert theirs.wait(60)["a"].outcome[1] == "POD_DELETED"

        terminal = Terminal(tmp_path, namespace)
        code, out, _ = finish(terminal.start({"b": {"image": BUSYBOX, "commands": ["echo ran"]}}, "--output", "plain"))
        assert code == 0, out

        name = pods(own_lab)[0]
        kube.kubectl("exec", "-n", namespace, name, "-c", "action", "--", "touch", "/workspace/go")
        report = mine.wait(60)["a"]
        assert report.outcome == ("succeeded", None, 0), report
        assert report.text == "begun\ndone\n"
    finally:
        other.close()

"""Test container `helper` in hardened pods on the real cluster.

The tests cover the order (the commands, variables and secrets) that container `helper` passes to container `action`.
They also cover the paths by which commands write to the log (`/dev/stdout`, `/proc/1/fd/1`), and the output of
`kubectl logs`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e import kube
from tests.e2e.lab import BASH, BUSYBOX, DEBIAN, SLIM, Lab, until

pytestmark = pytest.mark.e2e

NONROOT = "localhost/sealci-test/nonroot:1"
READ_ONLY = {"securityContext": {"readOnlyRootFilesystem": True}}
TEMPLATE = {"spec": {"containers": [{"name": "helper", **READ_ONLY}, {"name": "action", **READ_ONLY}]}}
NAMES = ("/dev/stdout", "/dev/stderr", "/proc/1/fd/1", "/proc/1/fd/2")


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    return {"environment": {"pod_template": TEMPLATE, "user_namespaces": "always"}}


def test_the_log_has_its_usual_names_in_every_shell_on_a_read_only_system_in_a_user_namespace(lab: Lab) -> None:
    commands = [*(f"echo {name} >{name}" for name in NAMES), "touch /x && exit 7; echo a >file"]
    images = {"dash": DEBIAN, "bash": BASH, "busybox": BUSYBOX, "nonroot": NONROOT}
    reports = lab.run({name: {"image": image, "commands": commands} for name, image in images.items()})
    for name, report in reports.items():
        assert report.outcome == ("succeeded", None, 0), (name, report)
        assert [line for line in report.text.splitlines() if line in NAMES] == list(NAMES)
        assert report.files["file"].read_text() == "a\n"


def test_commands_without_tmp_without_sleep_and_longer_than_an_argument(lab: Lab) -> None:
    commands = ["test ! -e /tmp", "! command -v sleep", ": " + "x" * 200_000, "echo end"]
    report = lab.one(SLIM, *commands, artifacts={"when": "never"})
    assert report.outcome == ("succeeded", None, 0), report.finished
    assert report.text == "end\n"


def test_kubectl_shows_the_log_and_no_process_shows_the_order(lab: Lab) -> None:
    running = lab.start(
        {
            "action": {
                "image": BUSYBOX,
                "commands": ["echo ready; printf 'password: '", "until test -e go; do sleep 0.1; done; echo end"],
                "env": {"PLAIN": "plain-value"},
                "artifacts": {"when": "never"},
            }
        }
    )

    def name_of_pod() -> str:
        items: list[dict[str, Any]] = json.loads(kube.kubectl("get", "pods", "-n", lab.namespace, "-o", "json"))[
            "items"
        ]
        return "".join(each["metadata"]["name"] for each in items if "until test" in json.dumps(each["spec"]))

    name = until(name_of_pod, "no pod")
    logs = ("logs", "-n", lab.namespace, name)
    until(lambda: "password: " in kube.kubectl(*logs, check=False), "kubectl logs shows no partial line", 30)
    inside = ("exec", "-n", lab.namespace, name, "-c", "action", "--", "sh", "-c")
    seen = kube.kubectl(*inside, "cat /proc/[0-9]*/cmdline /proc/1/environ | tr '\\0' ' '; ls /.sealci")
    assert "until test" not in seen
    assert "plain-value" not in seen
    assert seen.split()[-5:] == ["control", "go", "log", "order", "supervisor"]
    kube.kubectl(*inside, "touch /workspace/go")
    report = running.wait(60)["action"]
    assert report.outcome == ("succeeded", None, 0)
    assert report.text == "ready\npassword: end\n"

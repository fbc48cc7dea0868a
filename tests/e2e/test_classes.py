"""Classes of environments on a real cluster: larger pods, another processor, a GPU, a stricter profile.

Each class goes to its agent.

A label and an extended resource of a node stand in for arm64 and for the GPU.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.api.client import Client
from agent.cluster.checks import class_pods
from agent.domain.check_result import Verdict
from agent.settings import Settings, load
from agent.telemetry.metrics import Metrics
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, DEBIAN, Lab, new_namespace
from tests.e2e.test_chart_templates import MINIMAL, of_kind, template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.domain.json import Object

ARCH, GPU = "sealci.test/arch", "sealci.test/gpu"
ONE_GPU = {"spec": {"containers": [{"name": "action", "resources": {"limits": {GPU: "1"}}}]}}
CLASSES: dict[str, dict[str, Any]] = {
    "large": {"default_cpu": "40m", "default_memory": "48Mi", "max_memory": "64Mi"},
    "arm64": {"pod_template": {"spec": {"nodeSelector": {ARCH: "arm64"}}}},
    "strict": {"profile": "restricted"},
    "gpu": {"images": ["localhost/sealci-test/busybox"], "pod_template": ONE_GPU},
}


def set_gpus(node: str, number: str | None) -> None:
    """Let the node advertise this number of GPUs. None removes the resource."""
    amounts = {"capacity": {GPU: number}, "allocatable": {GPU: number}}
    kube.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps({"status": amounts}))


@pytest.fixture
def node() -> Iterator[str]:
    """Yield a node that looks as if it had an arm64 processor and a GPU."""
    name = str(kube.get("nodes")[0]["metadata"]["name"])
    kube.kubectl("label", "node", name, f"{ARCH}=arm64")
    set_gpus(name, "1")
    yield name
    set_gpus(name, None)
    kube.kubectl("label", "node", name, f"{ARCH}-")


@contextmanager
def placeholder() -> Iterator[Callable[[], list[str]]]:
    """Keep a GPU by a placeholder of the chart. Yield a function that returns the names of the placeholder's pods."""
    amounts = {"requests": {"cpu": "1m", "memory": "16Mi"}, "limits": {GPU: "1", "memory": "64Mi"}}
    values = {
        **MINIMAL,
        "environment": {"image": Settings().environment.image},
        "placeholders": {"replicas": 1, "resources": amounts},
    }
    with new_namespace() as namespace:
        values["cluster"] = {"namespace": namespace}
        objects = template(values, "--namespace", namespace)
        (deployment,) = (each for each in of_kind(objects, "Deployment") if "placeholder" in each["metadata"]["name"])
        (priority,) = of_kind(objects, "PriorityClass")
        kube.apply(priority, deployment)
        try:
            kube.kubectl(
                "rollout", "status", f"deployment/{deployment['metadata']['name']}", "-n", namespace, "--timeout=60s"
            )
            yield lambda: [pod["metadata"]["name"] for pod in kube.get("pods", "-n", namespace)]
        finally:
            kube.kubectl("delete", "priorityclass", priority["metadata"]["name"])


def action_container(pod: Object) -> Object:
    (found,) = (each for each in pod["spec"]["containers"] if each["name"] == "action")
    return dict(found)


async def test_each_action_gets_the_pod_of_its_class_on_an_agent_that_has_the_class(own_lab: Lab, node: str) -> None:
    own_lab.agent(environment={"classes": {name: CLASSES[name] for name in ("large", "arm64", "strict")}})
    own_lab.agent(environment={"classes": {"gpu": CLASSES["gpu"]}})
    ran = {"image": BUSYBOX, "commands": ["echo ran"]}
    # The placeholder has the only GPU, and yields it to the action.
    with placeholder() as placeholders:
        (evicted,) = placeholders()
        reports = own_lab.run(
            {
                "plain": ran,
                "large": {**ran, "class": "large"},
                "arm64": {**ran, "class": "arm64"},
                "gpu": {**ran, "class": "gpu"},
                "strict": {**ran, "class": "strict", "commands": ["echo ran as $(id -u)"]},
                "too-large": {**ran, "class": "large", "resources": {"memory": "65Mi"}},
                "other-image": {**ran, "image": DEBIAN, "class": "gpu"},
            }
        )
        assert evicted not in placeholders()
    for name in ("plain", "large", "arm64", "gpu", "strict"):
        assert reports[name].outcome == ("succeeded", None, 0), reports[name]
    for name, words in (("too-large", "65Mi is over the maximum of 64Mi"), ("other-image", "is not allowed")):
        assert reports[name].outcome[:2] == ("failed", "INVALID_CONFIGURATION")
        assert words in reports[name].text

    pods = {pod["metadata"]["labels"].get("sealci.dev/class", ""): pod for pod in own_lab.observer.states}
    assert set(pods) == {"", *CLASSES}
    assert action_container(pods["large"])["resources"]["requests"]["cpu"] == "40m"
    assert action_container(pods["large"])["resources"]["limits"]["memory"] == "48Mi"
    assert pods["arm64"]["spec"]["nodeSelector"] == {ARCH: "arm64"}
    assert action_container(pods["gpu"])["resources"]["limits"][GPU] == "1"
    assert reports["strict"].text == "ran as 65532\n"
    assert action_container(pods["strict"])["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "capabilities" not in action_container(pods["large"])["securityContext"]
    agents = {name: pod["metadata"]["labels"]["sealci.dev/agent"] for name, pod in pods.items()}
    assert agents["large"] == agents["arm64"] != agents["gpu"]

    # The doctor's dry run sees what the API server and the nodes would do, and creates nothing.
    missing = {"pod_template": {"spec": {"nodeSelector": {ARCH: "riscv64"}}}}
    misspelt = {"pod_template": {"spec": {"nodeSelectr": {ARCH: "arm64"}}}}
    classes = CLASSES | {"missing": missing, "misspelt": misspelt}
    cluster = {"namespace": own_lab.namespace, "kubeconfig": kube.kubeconfig()}
    settings = load(None, {"cluster": cluster, "environment": {"classes": classes}}, {})
    client = await Client.connect(settings.cluster, Metrics())
    try:
        found = {each.check: each async for each in class_pods.examine(client, settings, BUSYBOX)}
    finally:
        await client.close()
    verdicts = {name: found[f"class: {name}"].verdict for name in classes}
    assert verdicts == dict.fromkeys(CLASSES, Verdict.OK) | {"missing": Verdict.WARNING, "misspelt": Verdict.FAILED}
    assert "no node has the labels sealci.test/arch=riscv64" in found["class: missing"].detail
    assert "nodeSelectr" in found["class: misspelt"].detail

"""The shape of a warm pod: its manifest, which actions it fits, and the patch that claims it. Pure.

A warm pod has the manifest of an action's pod without the order. The key of a pool is a hash of this whole manifest. So
an action gets a warm pod only if its own pod would have had the same image, resources, profile and template.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.cluster.pod import action_order, labels, manifest
from agent.cluster.pod.fields import container_status, is_running, parse_timestamp, terminated_state
from agent.cluster.supervisor import command
from agent.domain.actions import Action, Key
from agent.domain.json import Object

if TYPE_CHECKING:
    from datetime import datetime

    from agent.settings import Settings

# Largest number of bytes of an order that is delivered. An exec carries the order.
MAX_ORDER_BYTES = 1 << 20
# Extra seconds that container `helper` waits for an order: the agent deletes an old pod first.
IDLE_MARGIN_SECONDS = 60.0
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Fields of a pod's spec that change after its creation without a change of what it runs.
CHANGING_FIELDS = ("nodeName", "activeDeadlineSeconds")


def idle_plan(plan: manifest.Plan, settings: Settings, name: str = "") -> manifest.Plan:
    """Return the plan of a warm pod in which the action of `plan` could run."""
    action = plan.action
    asked = Action(Key(""), action.image, (), resources=action.resources, environment_class=action.environment_class)
    idle_seconds = settings.warm.max_age + settings.policy.pull_timeout + IDLE_MARGIN_SECONDS
    timeout = max(settings.policy.max_timeout, settings.policy.default_timeout)
    return replace(plan, action=asked, name=name, nonce="", timeout=timeout, log_key=0, idle_seconds=idle_seconds)


def pool_key(plan: manifest.Plan, settings: Settings) -> str:
    """Return the key of the pool whose pods can run the action of `plan`.

    It is made of the action's own manifest. So an action that needs anything else in its pod has another key. Two
    classes never share a pool, because a label of the pod names the class. `settings` are those of the class.
    """
    spec = manifest.pod(plan, settings)["spec"]
    for container in spec["containers"]:
        if container["name"] == manifest.HELPER:
            # The order, which a warm pod gets later.
            del container["env"]
    shape = {name: value for name, value in spec.items() if name not in CHANGING_FIELDS}
    return digest([plan.action.environment_class, shape])[:32]


def idle_pod(plan: manifest.Plan, settings: Settings, key: str) -> Object:
    """Return the manifest of a warm pod. `plan` is an `idle_plan`."""
    body = manifest.pod(plan, settings)
    body["metadata"]["labels"][labels.WARM] = key
    return body


def digest(value: Object | list[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint(pod: Object) -> str:
    """Return a hash of what a pod runs. It changes if a person or a program edits the pod."""
    return digest({name: value for name, value in pod["spec"].items() if name not in CHANGING_FIELDS})


def is_idle(pod: Object) -> bool:
    """Return whether the labels show a warm pod that no action has claimed."""
    return labels.WARM in pod["metadata"].get("labels", {})


def is_ready(pod: Object) -> bool:
    """Return whether a warm pod waits for an order."""
    status = pod.get("status", {})
    both = all(is_running(container_status(status, name)) for name in (manifest.HELPER, manifest.ACTION))
    return both and not pod["metadata"].get("deletionTimestamp")


def start_failure(pod: Object) -> str:
    """Return why a warm pod cannot become ready or has ended, "" if it is well."""
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp"):
        return "it is being deleted"
    if status.get("phase") in ("Succeeded", "Failed"):
        return status.get("message") or status.get("reason") or "its containers have ended"
    for each in status.get("containerStatuses", ()):
        if terminated_state(each) is not None:
            return f"container {each['name']} has ended"
        waiting = each.get("state", {}).get("waiting", {})
        if waiting.get("reason", "ContainerCreating") not in ("ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return ""


def unschedulable(pod: Object) -> str:
    """Return why a pod has no node, "" if it has one, or gets one, or the scheduler has not tried yet."""
    if pod.get("status", {}).get("nominatedNodeName"):
        # Kubernetes evicts pods of lower priority, such as placeholders, and the pod gets their room.
        return ""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", condition.get("reason", "")))
    return ""


def order_of(plan: manifest.Plan, settings: Settings) -> bytes:
    """Return the order of an action as JSON, with the values of the secrets."""
    found = action_order.order(plan, settings)
    found["env"] |= {name: plan.action.secrets[name] for name in found["secrets"] if name != "SHELLOPTS"}
    if "SHELLOPTS" in found["secrets"]:
        found["shell_options"] = plan.action.secrets["SHELLOPTS"]
    return json.dumps(found | {"secrets": []}, ensure_ascii=False).encode("utf-8", "surrogateescape")


def ineligible(plan: manifest.Plan, settings: Settings) -> str:
    """Return why an action needs a pod of its own, as a value of the metrics' label `result`. "" if it needs none.

    `settings` are those of the action's class.
    """
    action = plan.action
    if action.services:
        return "cold_services"
    if action.repository is not None:
        return "cold_repository"
    if action.inputs:
        return "cold_inputs"
    if action.caches:
        return "cold_caches"
    names = action.env.keys() | action.secrets.keys()
    if names & command.NOT_EXPORTABLE or not all(VARIABLE.fullmatch(name) for name in names):
        return "cold_variable"
    if not has_stable_image(action.image, settings) and not settings.warm.stale_tags:
        return "cold_image"
    if len(order_of(plan, settings)) > MAX_ORDER_BYTES:
        return "cold_size"
    return ""


def has_stable_image(image: str, settings: Settings) -> bool:
    """Return whether a pod that was started earlier runs the same image as a new pod would."""
    return "@" in image or settings.environment.image_pull_policy != "Always"


def claim_patch(pod: Object, created: Object, plan: manifest.Plan, settings: Settings, now: datetime) -> Object:
    """Return the patch that makes a warm pod the pod of an action. It names the version of the pod.

    `created` is the pod as it was created. `now` is the time of the cluster's clock. After the patch, adoption and
    sweep see an ordinary pod of a session.
    """
    session = manifest.session_metadata(plan, now)
    session["labels"][labels.WARM] = None
    started = parse_timestamp(pod.get("status", {}).get("startTime")) or now
    # Kubernetes counts the deadline from the start of the pod, and accepts only a smaller value.
    deadline = math.ceil(max(0.0, (now - started).total_seconds())) + action_order.deadline(plan, settings)
    body: Object = {"metadata": {"resourceVersion": pod["metadata"]["resourceVersion"], **session}}
    if deadline < created["spec"].get("activeDeadlineSeconds", math.inf):
        body["spec"] = {"activeDeadlineSeconds": deadline}
    return body

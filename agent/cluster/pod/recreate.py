"""Build the manifest that re-creates an adopted pod which was lost before it started.

The functions have no side effects. The session annotation holds neither image nor commands, so the source is the pod as
it was at adoption. An agent that created the pod itself re-creates it from its plan and does not need this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.pod import labels
from agent.cluster.pod.fields import container_status, is_running, terminated_state
from agent.cluster.pod.manifest import ACTION
from agent.domain.json import Object

if TYPE_CHECKING:
    from agent.settings import Settings

COPIED_METADATA = ("name", "namespace", "labels", "annotations", "ownerReferences")


def recreation_manifest(pod: Object, settings: Settings) -> Object | None:
    """Return the manifest that re-creates `pod`, or None.

    None means that the commands have begun, or that the pod was read without its spec.
    """
    action = container_status(pod.get("status", {}), ACTION)
    if "containers" not in pod.get("spec", {}) or is_running(action) or terminated_state(action) is not None:
        return None
    metadata = {key: pod["metadata"][key] for key in COPIED_METADATA if key in pod["metadata"]}
    spec = dict(pod["spec"])
    # The cluster chose this node, and the node may be the reason for the loss. A node that the installer's template
    # names stays.
    environment = settings.environment
    chosen = environment.classes.get(metadata.get("labels", {}).get(labels.CLASS, ""))
    templates = (environment.pod_template, chosen.pod_template if chosen else {})
    if not any("nodeName" in each.get("spec", {}) for each in templates):
        spec.pop("nodeName", None)
    # Kubernetes' admission derives the priority from priorityClassName and refuses a different value.
    spec.pop("priority", None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def secret_of_older_agent(pod: Object) -> str:
    """Return the name of a pod's Secret if an agent of version 0.1 created the pod, else "".

    These agents gave the Secret the name of its pod. Remove this function when no agent can adopt such a pod any more.
    """
    name = str(pod["metadata"]["name"])
    for container in pod.get("spec", {}).get("containers", ()):
        for variable in container.get("env", ()) if container["name"] == ACTION else ():
            if variable.get("valueFrom", {}).get("secretKeyRef", {}).get("name") == name:
                return name
    return ""

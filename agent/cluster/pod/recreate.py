"""A pod that is lost before it started can be made again by an heir too: from the pod itself, as it was when claimed.

Pure. What adoption writes down says nothing of the image and the commands; they stand in the pod. An agent that made
the pod itself makes it again from its plan and needs nothing of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.pod.fields import container_status, is_running
from agent.cluster.pod.manifest import ACTION
from agent.domain.json import Object

if TYPE_CHECKING:
    from agent.settings import Settings

KEPT = ("name", "namespace", "labels", "annotations", "ownerReferences")


def recreation_manifest(pod: Object, settings: Settings) -> Object | None:
    """Return what makes the same pod once more; None when it has begun, or is not known whole."""
    action = container_status(pod.get("status", {}), ACTION)
    if "containers" not in pod.get("spec", {}) or is_running(action) or "terminated" in (action or {}).get("state", {}):
        return None
    metadata = {key: pod["metadata"][key] for key in KEPT if key in pod["metadata"]}
    spec = dict(pod["spec"])
    # A node that the cluster chose is chosen anew; what admission derived, it derives again.
    if "nodeName" not in settings.environment.pod_template.get("spec", {}):
        spec.pop("nodeName", None)
    spec.pop("priority", None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

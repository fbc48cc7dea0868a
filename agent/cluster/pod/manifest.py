"""Build the manifests of the pod and the Secret from an action and the agent's settings.

The functions have no side effects. Container `action` runs the user's image under the supervisor. Container `helper`
gives the supervisor its order, keeps the log, and keeps the workspace readable after the commands have ended. Init
container `repository` clones the repository. `docs/architecture.md` explains this design.

A request of the scheduler never sets a field of the pod directly. The installer's template is merged over the result.
Labels and one annotation hold what another agent needs for adoption.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cluster import packaging
from agent.cluster.in_pod import order as order_module
from agent.cluster.pod import labels, session_annotation
from agent.cluster.pod.action_order import (
    ACTION,
    HOME,
    deadline,
    escape_command,
    order_variables,
    unexportable_variables,
)
from agent.cluster.pod.resources import HELPERS, helper_resources, resources
from agent.cluster.pod.services.containers import host_aliases, scratch_volumes, service_containers
from agent.cluster.pod.template_merge import merge
from agent.cluster.supervisor import command as command_module
from agent.domain.actions import When
from agent.domain.json import Object

if TYPE_CHECKING:
    from datetime import datetime

    from agent.domain.actions import Action
    from agent.settings import Settings


__all__ = ["ACTION", "HELPER", "REPOSITORY"]
HELPER, REPOSITORY = HELPERS
# Name of the helper in pods that an agent of version 0.1 created.
FORMER_HELPER = "files"
GO = f"{command_module.ORDER_FOLDER}/{order_module.GO}"
# Size of the order's volume. The commands and variables of an action are at most 1 MiB, and shell quoting makes them
# longer.
ORDER_LIMIT = "8Mi"
CREDENTIALS = "/etc/sealci/credentials"
# Name of the volume of caches.
CACHES = "caches"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"


@dataclass(frozen=True, slots=True)
class Plan:
    """The agent's description of one environment: enough to create the pod and to judge its status.

    It lives as long as the environment. `timeout` is in seconds. `owner` is an owner reference.
    `existing_secret`: name of the Secret that an adopted pod refers to, "" for the name that `labels` gives.
    `log_key`: the key of the checksums in the log, 0 if an agent of an older release created the pod.
    `upload_tree`: the agent fills the workspace and then starts the commands; container `helper` does not start them.
    `idle_seconds`: seconds that a warm pod waits for its order, 0 for a pod that has its order from the start.
    """

    action: Action
    name: str
    namespace: str
    agent_id: str
    nonce: str
    timeout: float
    user_namespace: bool = False
    owner: Object | None = None
    upload_tree: bool = False
    existing_secret: str = ""
    log_key: int = 0
    idle_seconds: float = 0.0

    @property
    def secret_name(self) -> str:
        return self.existing_secret or labels.secret_name(self.name, self.nonce)

    @property
    def wants_files(self) -> bool:
        """Whether the agent may copy files of the workspace after the commands."""
        return self.keeps_artifacts or bool(self.action.caches)

    @property
    def keeps_artifacts(self) -> bool:
        return self.action.artifacts.when is not When.NEVER

    @property
    def wants_snapshot(self) -> bool:
        """Whether the artifacts are what differs from the snapshot of the workspace, which the action does not name."""
        return self.keeps_artifacts and not self.action.artifacts.paths


def pod(plan: Plan, settings: Settings) -> Object:
    """Return the manifest of the pod of an attempt."""
    environment = settings.environment
    manifest: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(plan, settings),
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            # Service links would add environment variables for every Service of the namespace.
            "enableServiceLinks": False,
            "activeDeadlineSeconds": deadline(plan, settings),
            "terminationGracePeriodSeconds": max(1, math.ceil(environment.grace)),
            "securityContext": pod_security_context(settings),
            "containers": [
                helper_container(plan, settings),
                *service_containers(plan, settings, container_security_context(settings)),
                action_container(plan, settings),
            ],
            "volumes": volumes(plan, settings),
        },
    }
    if plan.action.repository:
        manifest["spec"]["initContainers"] = [clone_container(plan, settings)]
    if aliases := host_aliases(plan):
        manifest["spec"]["hostAliases"] = aliases
    if plan.user_namespace:
        manifest["spec"]["hostUsers"] = False
    if environment.image_pull_secrets:
        manifest["spec"]["imagePullSecrets"] = [{"name": name} for name in environment.image_pull_secrets]
    result: Object = merge(manifest, environment.pod_template)
    if (chosen := environment.classes.get(plan.action.environment_class)) is not None:
        result = merge(result, chosen.pod_template)
    return result


def metadata(plan: Plan, settings: Settings) -> Object:
    """Return name, labels, annotations and owner of the pod.

    An agent that takes over the pod of another agent reads the session from the pod's session annotation. A warm pod
    has no session, and may be moved to another node.
    """
    result: Object = {
        "name": plan.name,
        "namespace": plan.namespace,
        "labels": settings.environment.labels
        | {
            labels.MANAGED_BY: labels.OWNER,
            labels.NAME: "sealci-action",
            labels.POOL: settings.agent.pool,
            labels.AGENT: plan.agent_id,
        }
        | ({labels.CLASS: plan.action.environment_class} if plan.action.environment_class else {}),
        "annotations": {
            # `kubectl logs` and `kubectl exec` use this container if the user names none.
            "kubectl.kubernetes.io/default-container": HELPER,
        },
    }
    if plan.idle_seconds:
        result["annotations"][SAFE_TO_EVICT] = "true"
    else:
        session = session_metadata(plan)
        result["labels"] |= session["labels"]
        result["annotations"] |= session["annotations"]
    if plan.owner:
        result["ownerReferences"] = [plan.owner]
    return result


def session_metadata(plan: Plan, claimed_at: datetime | None = None) -> Object:
    """Return the labels and annotations of a session. `claimed_at` is when a warm pod got the session."""
    key = plan.action.key
    return {
        "labels": {
            labels.ACTION: labels.action_hash(key.action_id),
            labels.ATTEMPT: str(key.attempt),
            labels.CLAIM: str(key.claim),
        },
        "annotations": {
            labels.SESSION: session_annotation.write(
                plan.action, plan.nonce, plan.timeout, plan.log_key, claimed_at=claimed_at
            ),
            # Autoscalers must not move a pod whose commands cannot be resumed on another node.
            SAFE_TO_EVICT: "false",
            "karpenter.sh/do-not-disrupt": "true",
        },
    }


def pod_security_context(settings: Settings) -> Object:
    # The profile of the pod holds for containers that a template or an admission webhook adds.
    security: Object = {"seccompProfile": {"type": "RuntimeDefault"}}
    if settings.environment.profile == "restricted":
        user = settings.environment.user
        security |= {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return security


def container_security_context(settings: Settings, *, user: int | None = None) -> Object:
    """Return the security context of a container.

    `user` is the user and group id of one of the agent's own containers. Only profile `baseline` sets it.
    """
    # A template can remove the pod's profile and that of container `action`. The agent's containers keep theirs.
    security: Object = {"allowPrivilegeEscalation": False, "seccompProfile": {"type": "RuntimeDefault"}}
    if settings.environment.profile == "restricted":
        return security | {"capabilities": {"drop": ["ALL"]}}
    if user is None:
        return security
    # The agent's own containers read and write files of every user, and need no other capability of root.
    capabilities = {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"]}
    return security | {"capabilities": capabilities, "runAsUser": user, "runAsGroup": user}


def action_container(plan: Plan, settings: Settings) -> Object:
    """Return the container that runs the user's image."""
    environment = settings.environment
    workspace = environment.workspace
    mounts: list[Object] = [
        {"name": "workspace", "mountPath": workspace},
        # A FIFO on a read-only volume can be opened for writing.
        {"name": "order", "mountPath": command_module.ORDER_FOLDER, "readOnly": True},
    ]
    if environment.profile == "restricted":
        mounts.append({"name": "home", "mountPath": HOME})
    return {
        "name": ACTION,
        "image": plan.action.image,
        "imagePullPolicy": environment.image_pull_policy,
        "command": escape_command(command_module.entrypoint()),
        "workingDir": workspace,
        "env": unexportable_variables(plan, settings),
        "resources": resources(plan, settings),
        "securityContext": container_security_context(settings),
        "lifecycle": {"preStop": {"exec": {"command": command_module.pre_stop()}}},
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }


def helper_container(plan: Plan, settings: Settings) -> Object:
    """Return the agent's own container. It starts the commands, keeps their log, and keeps the workspace readable."""
    environment = settings.environment
    return {
        "name": HELPER,
        "image": environment.image,
        "imagePullPolicy": "IfNotPresent",
        "command": escape_command(
            packaging.helper_command(
                command_module.ORDER_FOLDER, supervisor=command_module.SUPERVISOR, setup=command_module.SETUP
            )
        ),
        "env": order_variables(plan, settings),
        "resources": helper_resources(settings),
        # The container runs as root, because the files that the commands create can belong to any user.
        "securityContext": container_security_context(settings, user=0),
        "volumeMounts": [
            {"name": "workspace", "mountPath": environment.workspace},
            {"name": "order", "mountPath": command_module.ORDER_FOLDER},
            {"name": "log", "mountPath": packaging.LOG_FOLDER},
            *cache_mounts(plan, settings),
        ],
    }


def clone_container(plan: Plan, settings: Settings) -> Object:
    """Return the init container that clones the repository."""
    asked = plan.action.repository
    if asked is None:
        raise AssertionError("an action without a repository has no repository container")
    order = {
        "url": asked.url,
        "ref": asked.ref,
        "depth": asked.depth,
        "submodules": asked.submodules,
        "lfs": asked.lfs,
        "schemes": settings.policy.repository_schemes,
        "workspace": settings.environment.workspace,
        # Container `helper` gives the files to the user of the commands.
        "umask": 0o022,
        "credentials": CREDENTIALS if asked.credentials else "",
        "secret": asked.credentials,
        "timeout": settings.policy.clone_timeout,
        "git_config": settings.environment.git_config,
        "git_ca": settings.environment.git_ca,
    }
    proxy = settings.environment.proxy.variables
    mounts = [{"name": "workspace", "mountPath": settings.environment.workspace}]
    if asked.credentials:
        mounts.append({"name": "credentials", "mountPath": CREDENTIALS})
    return {
        "name": REPOSITORY,
        "image": settings.environment.image,
        "imagePullPolicy": "IfNotPresent",
        # This is the old name of the module, because the image on a node may be one release older than the agent.
        "command": escape_command(["python3", "-m", "agent.cluster.clone", json.dumps(order)]),
        "env": [{"name": name, "value": value} for name, value in ({"HOME": "/tmp"} | proxy).items()],  # noqa: S108 - inside the container
        "resources": settings.environment.clone_resources,
        "securityContext": container_security_context(settings, user=0),
        "volumeMounts": mounts,
    }


def mounts_claim(plan: Plan, settings: Settings) -> bool:
    """Return whether container `helper` can restore the caches of the action from the claim, or save them."""
    scope = plan.action.cache_scope
    used = bool(plan.action.caches) and scope is not None and bool(scope.read)
    return used and settings.caches.store == "claim" and settings.policy.cache != "off"


def cache_mounts(plan: Plan, settings: Settings) -> list[Object]:
    """Return the mount of the claim in container `helper`. No other container mounts it."""
    mount = {"name": CACHES, "mountPath": packaging.CLAIM_FOLDER, "readOnly": settings.policy.cache == "read"}
    return [mount] if mounts_claim(plan, settings) else []


def volumes(plan: Plan, settings: Settings) -> list[Object]:
    """Return the volumes. A home and the credentials are there only if the pod needs them."""
    found: list[Object] = [
        {"name": "workspace", "emptyDir": {"sizeLimit": settings.environment.workspace_limit}},
        # Secrets of the action must not reach a disk.
        {"name": "order", "emptyDir": {"medium": "Memory", "sizeLimit": ORDER_LIMIT}},
        {"name": "log", "emptyDir": {}},
        *scratch_volumes(plan, settings),
    ]
    if mounts_claim(plan, settings):
        found.append({"name": CACHES, "persistentVolumeClaim": {"claimName": settings.caches.claim}})
    if settings.environment.profile == "restricted":
        found.append({"name": "home", "emptyDir": {"sizeLimit": settings.environment.workspace_limit}})
    if plan.action.repository and plan.action.repository.credentials:
        found.append(
            {
                "name": "credentials",
                # The Secret is optional. The kubelet would wait for a missing Secret for ever, while the clone fails at
                # once.
                "secret": {
                    "secretName": plan.action.repository.credentials,
                    "defaultMode": 0o440,
                    "optional": True,
                },
            }
        )
    return found

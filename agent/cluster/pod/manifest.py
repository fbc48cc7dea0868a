"""Build the manifests of the pod and the Secret from an action and the agent's settings. Pure.

Container `action` runs the user's image under the supervisor. Container `files` keeps the workspace readable after the
commands have ended. Init container `repository` clones the repository. `docs/architecture.md` explains this design.

A request of the scheduler never sets a field of the pod directly. The installer's template is merged over the result.
Labels and one annotation hold what another agent needs for adoption.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cluster.in_pod.packaging import workspace_command
from agent.cluster.pod import labels, session_annotation
from agent.cluster.pod.resources import HELPERS, resources
from agent.cluster.pod.template_merge import merge
from agent.cluster.supervisor import command as command_module
from agent.domain.actions import When
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.actions import Action
    from agent.settings import Settings


ACTION = "action"
FILES, REPOSITORY = HELPERS
# Seconds that the deadlines inside the pod allow for adoption by another agent.
ADOPTION_SECONDS = 300.0
READY_FOLDER = "/.sealci"
READY = f"{READY_FOLDER}/ready"
CREDENTIALS = "/etc/sealci/credentials"
HOME = "/home/action"


@dataclass(frozen=True, slots=True)
class Plan:
    """The agent's description of one environment: enough to create the pod and to judge its status.

    It lives as long as the environment. `timeout` is in seconds. `owner` is an owner reference.
    `keep_files`: the pod has container `files` although the action may want no files.
    `existing_secret`: name of the Secret that an adopted pod refers to, "" for the name that `labels` gives.
    `upload_tree`: the agent fills the workspace and then starts the commands; container `files` does not start them.
    """

    action: Action
    name: str
    namespace: str
    agent_id: str
    nonce: str
    timeout: float
    user_namespace: bool = False
    owner: Object | None = None
    keep_files: bool = False
    upload_tree: bool = False
    existing_secret: str = ""

    @property
    def secret_name(self) -> str:
        return self.existing_secret or labels.secret_name(self.name, self.nonce)

    @property
    def wants_files(self) -> bool:
        """Whether the pod has container `files`."""
        return self.keep_files or self.action.artifacts.when is not When.NEVER


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
                *([files_container(plan, settings)] if plan.wants_files else []),
                action_container(plan, settings),
            ],
            "volumes": volumes(plan, settings),
        },
    }
    if plan.action.repository:
        manifest["spec"]["initContainers"] = [clone_container(plan, settings)]
    if plan.user_namespace:
        manifest["spec"]["hostUsers"] = False
    result: Object = merge(manifest, environment.pod_template)
    return result


def metadata(plan: Plan, settings: Settings) -> Object:
    """Return name, labels, annotations and owner of the pod. Adoption reads the session annotation."""
    action = plan.action
    result: Object = {
        "name": plan.name,
        "namespace": plan.namespace,
        "labels": settings.environment.labels
        | {
            labels.MANAGED_BY: labels.OWNER,
            labels.NAME: "sealci-action",
            labels.POOL: settings.agent.pool,
            labels.AGENT: plan.agent_id,
            labels.ACTION: labels.action_hash(action.key.action_id),
            labels.ATTEMPT: str(action.key.attempt),
            labels.CLAIM: str(action.key.claim),
        },
        "annotations": {
            labels.SESSION: session_annotation.write(action, plan.nonce, plan.timeout),
            # Autoscalers must not move a pod whose commands cannot be resumed on another node.
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        },
    }
    if plan.owner:
        result["ownerReferences"] = [plan.owner]
    return result


def deadline(plan: Plan, settings: Settings) -> int:
    """Return `activeDeadlineSeconds`, which ends the pod if no agent is left to delete it.

    The value is longer than all waits of the agent together, so that a live agent always ends the pod first.
    """
    policy = settings.policy
    return math.ceil(
        policy.pull_timeout
        + (policy.clone_timeout if plan.action.repository else 0)
        + plan.timeout
        + settings.environment.grace
        # Before the agent copies the files, it waits for its turn to copy. The wait lasts at most as long as the copy.
        + (2 * settings.artifacts.timeout if plan.wants_files else 0)
        + ADOPTION_SECONDS
    )


def pod_security_context(settings: Settings) -> Object:
    security: Object = {"seccompProfile": {"type": "RuntimeDefault"}}
    if settings.environment.profile == "restricted":
        user = settings.environment.user
        security |= {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return security


def container_security_context(settings: Settings, *, user: int | None = None) -> Object:
    """Return the security context of a container.

    `user` is the user and group id of one of the agent's own containers. Only profile `baseline` sets it.
    """
    if settings.environment.profile == "restricted":
        return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if user is None:
        return {"allowPrivilegeEscalation": False}
    # The agent's own containers read and write files of every user, and need no other right of root.
    capabilities = {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"]}
    return {"allowPrivilegeEscalation": False, "capabilities": capabilities, "runAsUser": user, "runAsGroup": user}


def action_container(plan: Plan, settings: Settings) -> Object:
    """Return the container that runs the user's image."""
    environment = settings.environment
    workspace = environment.workspace
    mounts: list[Object] = [{"name": "workspace", "mountPath": workspace}]
    if plan.wants_files:
        mounts.append({"name": "sealci", "mountPath": READY_FOLDER, "readOnly": True})
    if environment.profile == "restricted":
        mounts.append({"name": "home", "mountPath": HOME})
    return {
        "name": ACTION,
        "image": plan.action.image,
        "imagePullPolicy": environment.image_pull_policy,
        "command": escape_command(
            command_module.entrypoint(
                plan.action.commands,
                nonce=plan.nonce,
                workspace=workspace,
                wait_for_files=plan.wants_files,
                pipefail=command_module.pipefail_mode(plan.action.pipefail, environment.pipefail),
                ready_path=READY,
            )
        ),
        "workingDir": workspace,
        "env": environment_variables(plan, settings),
        "resources": resources(plan, settings),
        "securityContext": container_security_context(settings),
        "lifecycle": {"preStop": {"exec": {"command": command_module.pre_stop()}}},
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }


def environment_variables(plan: Plan, settings: Settings) -> list[Object]:
    """Return the environment variables: those that CI tools look for, the user's, and references to secrets.

    A variable of the user replaces the agent's variable of the same name. A secret replaces both.
    """
    action = plan.action
    values = {
        "CI": "true",
        "SEALCI": "true",
        "SEALCI_ACTION": action.name or action.key.action_id,
        "SEALCI_ATTEMPT": str(action.key.attempt),
        "SEALCI_WORKSPACE": settings.environment.workspace,
    }
    if settings.environment.profile == "restricted":
        values["HOME"] = HOME
    if action.traceparent:
        values["TRACEPARENT"] = action.traceparent
    values |= action.env
    if action.repository:
        values |= git_variables(action.env, settings.environment.workspace)
    rename = command_module.variable_name
    plain = [{"name": rename(n), "value": escape_variables(v)} for n, v in values.items() if n not in action.secrets]
    secret = [
        {"name": rename(name), "valueFrom": {"secretKeyRef": {"name": plan.secret_name, "key": name}}}
        for name in action.secrets
    ]
    return plain + secret


def git_variables(env: Mapping[str, str], workspace: str) -> dict[str, str]:
    """Return the variables by which git accepts a clone that belongs to another user.

    The variables add one setting of git to the settings that the user's variables contain. No file in the user's image
    changes.
    """
    count = env.get("GIT_CONFIG_COUNT") or "0"
    # Git refuses to start with another count, and its message shows the user's mistake.
    if not re.fullmatch(r"[0-9]{1,6}", count):
        return {}
    number = int(count)
    return {
        "GIT_CONFIG_COUNT": str(number + 1),
        f"GIT_CONFIG_KEY_{number}": "safe.directory",
        f"GIT_CONFIG_VALUE_{number}": workspace,
    }


def escape_variables(text: str) -> str:
    """Escape a text against the kubelet, which expands `$(VAR)` and replaces `$$` by `$`."""
    return text.replace("$", "$$")


def escape_command(command: list[str]) -> list[str]:
    """Return a command that the kubelet passes to the container unchanged."""
    return [escape_variables(argument) for argument in command]


def files_container(plan: Plan, settings: Settings) -> Object:
    """Return the container that keeps the workspace readable after the commands have ended."""
    seconds = 2 * settings.artifacts.timeout + ADOPTION_SECONDS
    return {
        "name": FILES,
        "image": settings.environment.image,
        "imagePullPolicy": "IfNotPresent",
        "command": escape_command(
            workspace_command(
                workspace=settings.environment.workspace,
                ready_path="" if plan.upload_tree else READY,
                seconds=plan.timeout + settings.policy.pull_timeout + seconds,
            )
        ),
        "resources": settings.environment.helper_resources,
        # The container runs as root, because the commands of the action may create files that belong to any user.
        "securityContext": container_security_context(settings, user=0),
        "volumeMounts": [
            {"name": "workspace", "mountPath": settings.environment.workspace},
            {"name": "sealci", "mountPath": READY_FOLDER},
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
        "credentials": CREDENTIALS if asked.credentials else "",
        "secret": asked.credentials,
        "timeout": settings.policy.clone_timeout,
    }
    mounts = [{"name": "workspace", "mountPath": settings.environment.workspace}]
    if asked.credentials:
        mounts.append({"name": "credentials", "mountPath": CREDENTIALS})
    return {
        "name": REPOSITORY,
        "image": settings.environment.image,
        "imagePullPolicy": "IfNotPresent",
        # This is the old name of the module, because the image on a node may be one release older than the agent.
        "command": escape_command(["python3", "-m", "agent.cluster.clone", json.dumps(order)]),
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - inside the container
        "resources": settings.environment.clone_resources,
        "securityContext": container_security_context(settings, user=0),
        "volumeMounts": mounts,
    }


def volumes(plan: Plan, settings: Settings) -> list[Object]:
    """Return the volumes: the workspace and, where the pod needs them, the ready file, a home and the credentials."""
    found: list[Object] = [
        {"name": "workspace", "emptyDir": {"sizeLimit": settings.environment.workspace_limit}},
    ]
    if plan.wants_files:
        found.append({"name": "sealci", "emptyDir": {"sizeLimit": "1Mi"}})
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


def secret(plan: Plan, settings: Settings, pod_uid: str) -> Object:
    """Return the manifest of the Secret of an attempt.

    The pod is the only owner of the Secret, so the garbage collector deletes the Secret with the pod.
    """
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": plan.secret_name,
            "namespace": plan.namespace,
            "labels": {
                labels.MANAGED_BY: labels.OWNER,
                labels.POOL: settings.agent.pool,
                labels.ACTION: labels.action_hash(plan.action.key.action_id),
                labels.ATTEMPT: str(plan.action.key.attempt),
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": plan.name, "uid": pod_uid}],
        },
        "immutable": True,
        "stringData": dict(plan.action.secrets),
    }

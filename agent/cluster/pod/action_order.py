"""Build the order of an action, the environment variables of its pod's containers, and the deadlines of the pod.

The functions have no side effects. Container `helper` gets the order and the values of the secrets, and writes them
into a volume in memory. So only the commands shell has the variables of the action. Container `action` itself has only
the variables that no shell can export, and the variables of the installer's template.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from agent.cluster import packaging
from agent.cluster.in_pod import order as order_module
from agent.cluster.pod import labels
from agent.cluster.pod.services.gate import gate_seconds, start_gate
from agent.cluster.supervisor import command as command_module
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.cluster.pod.manifest import Plan
    from agent.settings import Settings

ACTION = "action"
# Seconds that the deadlines inside the pod allow for adoption by another agent.
ADOPTION_SECONDS = 300.0
HOME = "/home/action"


def restricted_user(settings: Settings) -> int:
    """Return the user id of all containers in the profile `restricted`; 0 in another profile."""
    return settings.environment.user if settings.environment.profile == "restricted" else 0


def variables(plan: Plan, settings: Settings) -> dict[str, str]:
    """Return the environment variables of the commands: the variables that CI tools look for, and the user's variables.

    A variable of the user replaces the agent's variable of the same name. A variable is left out if a secret, or a
    variable that the installer's template sets in container `action`, has the same name.
    """
    action = plan.action
    values = {
        "CI": "true",
        "SEALCI": "true",
        "SEALCI_ACTION": action.name or action.key.action_id,
        "SEALCI_ATTEMPT": str(action.key.attempt),
        "SEALCI_WORKSPACE": settings.environment.workspace,
        **settings.environment.proxy.variables,
    }
    if settings.environment.profile == "restricted":
        values["HOME"] = HOME
    if action.traceparent:
        values["TRACEPARENT"] = action.traceparent
    values |= action.env
    if action.repository and "GIT_CONFIG_COUNT" not in action.secrets:
        values |= git_variables(action.env, settings.environment.workspace)
    hidden = action.secrets.keys() | template_variables(plan, settings)
    return {name: value for name, value in values.items() if name not in hidden}


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
    name = f"GIT_CONFIG_KEY_{number}"
    # The user has set this variable already. The user's commands then set GIT_CONFIG_COUNT themselves.
    if name in env:
        return {}
    return {
        "GIT_CONFIG_COUNT": str(number + 1),
        name: "safe.directory",
        f"GIT_CONFIG_VALUE_{number}": workspace,
    }


def template_variables(plan: Plan, settings: Settings) -> set[str]:
    """Return the names of the variables that the installer's templates set in container `action`."""
    chosen = settings.environment.classes.get(plan.action.environment_class)
    templates = (settings.environment.pod_template, *([chosen.pod_template] if chosen is not None else []))
    containers = [each for template in templates for each in template.get("spec", {}).get("containers", ())]
    return {each["name"] for found in containers if found["name"] == ACTION for each in found.get("env", ())}


def order_secrets(plan: Plan, settings: Settings) -> list[str]:
    """Return the names of the secrets that reach the commands through the order."""
    return sorted(plan.action.secrets.keys() - command_module.NOT_EXPORTABLE - template_variables(plan, settings))


def unexportable_variables(plan: Plan, settings: Settings) -> list[Object]:
    """Return the few variables that no shell can export. They are variables of container `action` itself."""
    special = command_module.NOT_EXPORTABLE
    plain = [{"name": n, "value": escape_variables(v)} for n, v in variables(plan, settings).items() if n in special]
    secret = sorted((plan.action.secrets.keys() & special) - template_variables(plan, settings))
    return plain + [secret_variable(name, name, plan) for name in secret]


def shell_variables(plan: Plan, settings: Settings) -> list[Object]:
    """Return the variables of the commands for a container without an order, in which a person looks into a failure."""
    special = command_module.NOT_EXPORTABLE
    values = {name: value for name, value in variables(plan, settings).items() if name not in special}
    plain: list[Object] = [{"name": name, "value": escape_variables(value)} for name, value in values.items()]
    secrets = [secret_variable(name, name, plan) for name in order_secrets(plan, settings)]
    for each in secrets:
        # A warm pod has no Secret. The container then starts without the secrets.
        each["valueFrom"]["secretKeyRef"]["optional"] = True
    return plain + secrets


def secret_variable(name: str, key: str, plan: Plan) -> Object:
    """Return an environment variable whose value is in the attempt's Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": plan.secret_name, "key": key}}}


def order(plan: Plan, settings: Settings) -> Object:
    """Return the order of an action, with the names of its secrets."""
    values = variables(plan, settings)
    return command_module.order(
        plan.action.commands,
        nonce=plan.nonce,
        env={name: value for name, value in values.items() if name not in command_module.NOT_EXPORTABLE},
        secrets=order_secrets(plan, settings),
        workspace=settings.environment.workspace,
        pipefail=command_module.pipefail_mode(plan.action.pipefail, settings.environment.pipefail),
        # The agent compares the workspace with the snapshot only if the action declares no paths of artifacts.
        snapshot=plan.wants_snapshot,
        change_owner=plan.action.repository is not None or plan.action.awaits_files,
        # An errand fills the workspace and then starts the commands.
        start=not plan.upload_tree and not plan.action.awaits_files,
        gate=start_gate(plan, settings),
        log_limit=settings.logs.max_total,
        log_key=plan.log_key,
        seconds=helper_seconds(plan, settings),
    )


def order_variables(plan: Plan, settings: Settings) -> list[Object]:
    """Return the variables of container `helper`: the action's order, and the values of its secrets.

    A warm pod has no order yet. Its variable is the time to wait for one.
    """
    if plan.idle_seconds:
        return [{"name": order_module.IDLE_SECONDS, "value": f"{plan.idle_seconds:g}"}]
    asked = order(plan, settings)
    pieces = packaging.order_variables(asked)
    return [
        *({"name": name, "value": escape_variables(piece)} for name, piece in pieces.items()),
        *(secret_variable(order_module.SECRET + name, name, plan) for name in asked["secrets"]),
    ]


def helper_seconds(plan: Plan, settings: Settings) -> float:
    """Return the seconds after which container `helper` ends by itself, in case no agent deletes the pod."""
    waiting = gate_seconds(plan, settings) + copy_seconds(plan, settings)
    return math.ceil(plan.timeout + settings.policy.pull_timeout + waiting + ADOPTION_SECONDS)


def deadline(plan: Plan, settings: Settings) -> int:
    """Return `activeDeadlineSeconds`, which ends the pod if no agent is left to delete it.

    A warm pod first waits. Its deadline is lowered when it gets an action.

    The value is longer than all waits of the agent together, so that a live agent always ends the pod first.
    """
    policy = settings.policy
    return math.ceil(
        plan.idle_seconds
        + policy.pull_timeout
        + (policy.clone_timeout if plan.action.repository else 0)
        + gate_seconds(plan, settings)
        + plan.timeout
        + settings.environment.grace
        + copy_seconds(plan, settings)
        + ADOPTION_SECONDS
    )


def copy_seconds(plan: Plan, settings: Settings) -> float:
    """Return the longest time of all copies of files, in seconds.

    They are inputs, artifacts, artifacts without the store, and caches.

    The agent waits for its turn before it copies files. The wait and the copy each last at most `artifacts.timeout`.
    """
    artifacts = 0 if not plan.keeps_artifacts else 1 if settings.objects.issuer == "none" else 2
    caches = settings.caches.restore_timeout + settings.caches.save_timeout if plan.action.caches else 0.0
    return 2 * settings.artifacts.timeout * (artifacts + plan.action.awaits_files) + caches


def escape_variables(text: str) -> str:
    """Escape a text so that the kubelet leaves it unchanged. The kubelet expands `$(VAR)` and replaces `$$` by `$`."""
    return text.replace("$", "$$")


def escape_command(command: list[str]) -> list[str]:
    """Return a command that the kubelet passes to the container unchanged."""
    return [escape_variables(argument) for argument in command]


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

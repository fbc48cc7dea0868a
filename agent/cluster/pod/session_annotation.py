"""Write and read the annotation by which another agent can adopt a pod's session. The functions have no side effects.

The annotation holds neither commands nor secret values. The pod holds the commands, and the scheduler sends the values
again.
"""

from __future__ import annotations

import json
from datetime import datetime

from agent.cluster.pod import labels
from agent.domain.actions import (
    Action,
    ArtifactRules,
    HealthCommand,
    Key,
    OnExit,
    Service,
    ServiceLog,
    When,
)
from agent.domain.json import Object


def write(action: Action, nonce: str, timeout: float, log_key: int, *, claimed_at: datetime | None = None) -> str:
    """Return the annotation of a session.

    `timeout` is the effective timeout of the commands, in seconds. `log_key` is the key of the checksums in the log.
    `claimed_at`: when the session got a warm pod, by the cluster's clock. None for a pod of its own.
    """
    rules = action.artifacts
    session: Object = {
        "action_id": action.key.action_id,
        "attempt": action.key.attempt,
        "name": action.name,
        "nonce": nonce,
        # An agent of an older release knows this field by another name, and does not adopt a pod without the field of
        # its own name. That agent cannot read the log of this pod, or does not know services.
        ("command_count_beside_services" if action.services else "command_count"): len(action.commands),
        "log_key": log_key,
        "secrets": sorted(action.secrets),
        "timeout": timeout,
        "traceparent": action.traceparent,
        "artifacts": {"paths": rules.paths, "exclude": rules.exclude, "when": rules.when.value},
        "class": action.environment_class,
    }
    if action.services:
        session["services"] = [write_service(each) for each in action.services]
    if claimed_at is not None:
        session["claimed_at"] = claimed_at.isoformat(timespec="milliseconds")
    return json.dumps(session, separators=(",", ":"))


def write_service(service: Service) -> Object:
    """Return what an adopting agent needs to judge a service. The pod holds the rest."""
    return {
        "name": service.name,
        "ports": service.ports,
        "health": service.health is not None,
        "timeout": service.health.timeout if service.health else None,
        "on_exit": service.on_exit.value,
        "log": service.log.value,
    }


def read_service(values: Object) -> Service:
    timeout = values["timeout"]
    return Service(
        name=str(values["name"]),
        image="",
        ports=tuple(map(int, values["ports"])),
        health=HealthCommand((), float(timeout) if timeout is not None else None) if values["health"] else None,
        on_exit=OnExit(values["on_exit"]),
        log=ServiceLog(values["log"]),
    )


def command_count(session: Object) -> int:
    """Return the number of commands of a session. The name of the field depends on the release and on services."""
    names = ("command_count", "command_count_beside_services")
    return int(next((session[name] for name in names if name in session), None) or session["commands"])


def claimed_at_of(pod: Object) -> datetime | None:
    """Return when a session got this warm pod. None for a pod that was created for its session."""
    try:
        found = datetime.fromisoformat(json.loads(pod["metadata"]["annotations"][labels.SESSION])["claimed_at"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return found if found.tzinfo else None


def log_key_of(pod: Object) -> int:
    """Return the key of the checksums in a pod's log; 0 if an agent of an older release created the pod."""
    try:
        return int(json.loads(pod["metadata"]["annotations"][labels.SESSION]).get("log_key", 0))
    except (KeyError, TypeError, ValueError, RecursionError):
        return 0


def claim_of(pod: Object) -> int:
    """Return the claim from the labels of a pod: the number of its session's owner. 0 if there is no valid claim."""
    text = str(pod["metadata"].get("labels", {}).get(labels.CLAIM, ""))
    return int(text) if text.isascii() and text.isdigit() else 0


def nonce_of(pod: Object) -> str:
    """Return the nonce of a pod's session; "" if the annotation is missing or unreadable."""
    try:
        return str(json.loads(pod["metadata"]["annotations"][labels.SESSION])["nonce"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""


def read(pod: Object) -> tuple[Action, str]:
    """Return the action of a pod that another agent created, and the nonce of its session.

    The returned action has as many empty commands as the original has commands. Its secrets have names and empty
    values.

    Raises:
        ValueError: the annotation or the claim is missing or unreadable, for example because a newer version of the
        agent wrote the annotation.
    """
    meta = pod["metadata"]
    try:
        session = json.loads(meta["annotations"][labels.SESSION])
        rules, claim = session["artifacts"], claim_of(pod)
        if not claim:
            raise ValueError("no claim")
        action = Action(
            key=Key(session["action_id"], int(session["attempt"]), claim),
            image="",
            commands=("",) * command_count(session),
            name=session["name"],
            secrets=dict.fromkeys(session["secrets"], ""),
            artifacts=ArtifactRules(tuple(rules["paths"]), tuple(rules["exclude"]), When(rules["when"])),
            timeout=float(session["timeout"]),
            traceparent=str(session.get("traceparent", "")),
            services=tuple(map(read_service, session.get("services", ()))),
            environment_class=str(session.get("class", "")),
        )
        return action, str(session["nonce"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"the pod {meta.get('name')} has no readable session annotation: {error!r}") from error

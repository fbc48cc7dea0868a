"""What a pod tells of its session, so that another agent can go on with it: one annotation, written and read here.

Pure. Commands and secret values are not in it: the commands run already, and the values come from the scheduler.
"""

from __future__ import annotations

import json

from agent.cluster.pod import labels
from agent.domain.actions import Action, ArtifactRules, Key, When
from agent.domain.json import Object


def write(action: Action, nonce: str, timeout: float) -> str:
    """Return the annotation of a session; `timeout` is the one in force, in seconds."""
    rules = action.artifacts
    session = {
        "action_id": action.key.action_id,
        "attempt": action.key.attempt,
        "name": action.name,
        "nonce": nonce,
        "commands": len(action.commands),
        "secrets": sorted(action.secrets),
        "timeout": timeout,
        "traceparent": action.traceparent,
        "artifacts": {"paths": rules.paths, "exclude": rules.exclude, "when": rules.when.value},
    }
    return json.dumps(session, separators=(",", ":"))


def claim_of(pod: Object) -> int:
    """Return the claim that a pod is labelled with; 0 for one that tells none."""
    told = str(pod["metadata"].get("labels", {}).get(labels.CLAIM, ""))
    return int(told) if told.isascii() and told.isdigit() else 0


def nonce_of(pod: Object) -> str:
    """Return the nonce of a pod's session; "" for one that tells none."""
    try:
        return str(json.loads(pod["metadata"]["annotations"][labels.SESSION])["nonce"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""


def read(pod: Object) -> tuple[Action, str]:
    """Return the action of a pod that another agent made, as far as it tells, and its nonce.

    The commands are unknown and their number is not; secrets have names and no values.

    Raises:
        ValueError: it is no pod of an action, or of a version that is not understood.
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
            commands=("",) * int(session["commands"]),
            name=session["name"],
            secrets=dict.fromkeys(session["secrets"], ""),
            artifacts=ArtifactRules(tuple(rules["paths"]), tuple(rules["exclude"]), When(rules["when"])),
            timeout=float(session["timeout"]),
            traceparent=str(session.get("traceparent", "")),
        )
        return action, str(session["nonce"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"the pod {meta.get('name')} tells no session: {error!r}") from error

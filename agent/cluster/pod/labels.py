"""Names, labels and annotation keys of the objects that agents create, and the selector that finds them.

The functions have no side effects. Names of pods are deterministic, so an agent can repeat a create request whose
answer was lost, and two agents cannot both create a pod for one attempt. Names of Secrets depend on the random nonce of
the session, so that they cannot be derived from an action id. Names contain a hash, so any action id is legal.
Selectors always name the pool, so two releases and a `run` in one namespace stay apart.
"""

from __future__ import annotations

import hashlib
import re

MANAGED_BY = "app.kubernetes.io/managed-by"
NAME = "app.kubernetes.io/name"
POOL = "sealci.dev/pool"
AGENT = "sealci.dev/agent"
ACTION = "sealci.dev/action"
ATTEMPT = "sealci.dev/attempt"
CLAIM = "sealci.dev/claim"
CLASS = "sealci.dev/class"
SESSION = "sealci.dev/session"
# Only a warm pod that no action has claimed has this label. The value is the key of its pool.
WARM = "sealci.dev/warm"
OWNER = "sealci-agent"


def action_hash(action_id: str) -> str:
    """Return a legal label value for any action id."""
    return hashlib.sha256(action_id.encode()).hexdigest()[:32]


def pod_name(pool: str, action_id: str, attempt: int) -> str:
    """Return the name of the pod: a readable part, then a hash that makes the name unique."""
    slug = re.sub(r"[^a-z0-9]+", "-", action_id.lower()).strip("-")[-24:].strip("-")
    digest = hashlib.sha256(f"{pool}\0{action_id}\0{attempt}".encode()).hexdigest()[:12]
    return "-".join(part for part in ("sealci", slug, digest) if part)


def secret_name(pod_name: str, nonce: str) -> str:
    """Return the name of the Secret of a pod. A re-created pod of the same session gets the same name."""
    return f"{pod_name}-{hashlib.sha256(nonce.encode()).hexdigest()[:16]}"


def pool_selector(pool: str) -> str:
    """Return the label selector for all objects of a pool."""
    return f"{MANAGED_BY}={OWNER},{POOL}={pool}"

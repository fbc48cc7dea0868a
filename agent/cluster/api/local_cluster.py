"""The cluster that `make cluster-up` starts on this machine, for commands that find no other cluster.

A user who has no kubeconfig of another cluster has nothing to set after `make cluster-up`. The command line calls this
module once, before it connects.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from agent.settings import ClusterSettings

# Number of local clusters that one machine can run.
NUMBERS = 10


def find_local_cluster(settings: ClusterSettings) -> Path | None:
    """Return the kubeconfig of a local cluster.

    Returns None if there is no local cluster, or if a setting, KUBECONFIG, the default kubeconfig or the service
    account of a pod names a cluster.
    """
    named = settings.kubeconfig is not None or bool(settings.context)
    if named or os.environ.get("KUBECONFIG") or "KUBERNETES_SERVICE_HOST" in os.environ or default_has_contexts():
        return None
    cache = os.environ.get("SEALCI_CACHE")
    clusters = (Path(cache) if cache else Path("~/.cache/sealci-agent").expanduser()) / "run"
    chosen = os.environ.get("CLUSTER_NUMBER")
    files = [clusters / number / "kubeconfig" for number in ([chosen] if chosen else map(str, range(NUMBERS)))]
    return next((file for file in files if os.access(file, os.R_OK)), None)


def default_has_contexts() -> bool:
    """Return whether ~/.kube/config names a cluster.

    Returns True for a file that cannot be read too. Its error must reach the user.
    """
    try:
        content = yaml.safe_load(Path("~/.kube/config").expanduser().read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, RuntimeError, yaml.YAMLError):
        return True
    return not isinstance(content, dict) or bool(content.get("contexts")) if content else False

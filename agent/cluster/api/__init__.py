"""The transport to the Kubernetes API: requests, watches, exec, a rate limit, and failures as `ClusterError`.

This package is the only importer of `kubernetes`.
"""

from __future__ import annotations

# `lean_import` must run before any module of this package imports `kubernetes`, so this import comes first.
from agent.cluster.api import lean_import as lean_import

"""The transport to the Kubernetes API: requests, watches, exec, a rate limit, errors as values.

This package is the only importer of `kubernetes`.
"""

from __future__ import annotations

# First, before any module of this package imports `kubernetes`.
from agent.cluster.api import lean_import as lean_import

"""Of the Kubernetes library only the modules that are used are loaded; to be imported before any of them.

Importing any module of a package runs the package's own first, and that of `kubernetes` loads its synchronous half
(requests, urllib3, oauthlib, websocket: 9 MiB and a third of the time until an agent is registered) for the names that
it offers. Here both packages are known and not run: their modules load as ever, by their full names.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec

for package in ("kubernetes", "kubernetes.aio"):
    if package not in sys.modules and (spec := find_spec(package)) is not None:
        sys.modules[package] = module_from_spec(spec)

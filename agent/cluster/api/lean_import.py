"""Workaround: import only the used modules of the Kubernetes library.

This module must be imported before any module of `kubernetes`. An import of `kubernetes.aio.client` first runs the
`__init__` of `kubernetes`. That file loads the library's synchronous half (requests, urllib3, oauthlib, websocket),
which the agent does not use. Measured: this half costs 9 MiB of memory and a third of the agent's time until it is
registered. This module puts the packages `kubernetes` and `kubernetes.aio` into `sys.modules` without running their
`__init__`. Their submodules then load by their full names as usual.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec

for package in ("kubernetes", "kubernetes.aio"):
    if package not in sys.modules and (spec := find_spec(package)) is not None:
        sys.modules[package] = module_from_spec(spec)

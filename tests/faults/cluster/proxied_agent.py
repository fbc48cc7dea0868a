"""An agent on a real cluster that reaches the API server through a proxy.

Agent, lab and proxy live as long as the `with` block.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from tests.e2e import kube
from tests.e2e.lab import Lab, open_lab
from tests.faults.proxy import Threaded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.lab import Agent


@contextmanager
def proxied_agent(namespace: str, folder: Path, **settings: Any) -> Iterator[tuple[Lab, Agent, Threaded]]:
    """Yield a lab, its one agent, and the proxy through which the agent reaches the API server."""
    with api_proxy(folder) as (proxy, kubeconfig), open_lab(namespace, folder) as lab:
        try:
            yield lab, lab.agent(cluster={"kubeconfig": kubeconfig}, **settings), proxy
        finally:
            proxy.fault("heal")


@contextmanager
def api_proxy(folder: Path) -> Iterator[tuple[Threaded, str]]:
    """Yield a proxy in front of the API server, and the path of a kubeconfig that names the proxy."""
    kubeconfig = yaml.safe_load(kube.kubectl("config", "view", "--raw", "--minify"))
    cluster = kubeconfig["clusters"][0]["cluster"]
    proxy = Threaded(cluster["server"].removeprefix("https://"))
    cluster["server"] = f"https://{proxy.address}"
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(kubeconfig))
    try:
        yield proxy, str(file)
    finally:
        proxy.close()

"""An agent on the real cluster that reaches the API through a proxy."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from tests.e2e import kube
from tests.e2e.lab import Lab, new_namespace
from tests.faults.proxy import Threaded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.lab import Agent


@contextmanager
def proxied_agent(folder: Path, **settings: Any) -> Iterator[tuple[Lab, Agent, Threaded]]:
    """Make a namespace, a lab, a proxy in front of the API, and an agent that knows the API by the proxy's address."""
    kubeconfig = yaml.safe_load(kube.kubectl("config", "view", "--raw", "--minify"))
    cluster = kubeconfig["clusters"][0]["cluster"]
    proxy = Threaded(cluster["server"].removeprefix("https://"))
    with new_namespace() as namespace:
        lab = Lab(namespace, folder)
        try:
            cluster["server"] = f"https://{proxy.address}"
            file = folder / "kubeconfig"
            file.write_text(yaml.safe_dump(kubeconfig))
            yield lab, lab.agent(cluster={"kubeconfig": str(file)}, **settings), proxy
        finally:
            proxy.fault("heal")
            lab.close()
            proxy.close()

"""Where the cluster is and which credentials the agent uses there.

`Client.connect` calls this module once. The configuration that it returns lives as long as the client. The
configuration reads a rotated token again by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio.client import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

from agent.domain.errors import SettingsError

if TYPE_CHECKING:
    from agent.settings import ClusterSettings


async def load_configuration(settings: ClusterSettings) -> Configuration:
    """Read the address of the API server and the credentials. No request is made.

    Raises:
        SettingsError: there is no usable configuration.
    """
    configuration = Configuration()
    try:
        await load_credentials(configuration, settings)
    except (ConfigException, OSError) as error:
        raise SettingsError(f"cluster: no cluster to use: {error}") from error
    # 0 means no limit. Every followed log, watch and exec holds a connection, and requests wait silently for a full
    # connection pool.
    configuration.connection_pool_maxsize = 0
    # The proxy variables are read once. With `trust_env`, aiohttp would read these variables and ~/.netrc for every
    # request.
    proxy = configuration.proxy or proxy_of(configuration.host)
    configuration.client_session_kwargs = {"read_bufsize": 1 << 16, "trust_env": False, "proxy": proxy}
    return configuration


async def load_credentials(configuration: Configuration, settings: ClusterSettings) -> None:
    """Use the kubeconfig or context of the settings, else the service account of the pod, else the default file."""
    if settings.kubeconfig is None and not settings.context:
        try:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except ConfigException:
            pass  # The agent does not run in a cluster, so the default kubeconfig is the last place to look.
        else:
            return
    await load_kube_config(  # type: ignore[no-untyped-call]
        config_file=str(settings.kubeconfig) if settings.kubeconfig else None,
        context=settings.context or None,
        client_configuration=configuration,
    )


def proxy_of(server: str) -> str | None:
    """Return the proxy for the API server that HTTPS_PROXY and NO_PROXY name."""
    url = urlsplit(server)
    if not url.hostname or proxy_bypass(url.hostname):
        return None
    return getproxies().get(url.scheme)

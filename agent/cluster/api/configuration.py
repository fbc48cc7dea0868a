"""Where the cluster is and which credentials the agent uses there.

`Client.connect` calls this module once. The configuration that it returns lives as long as the client. The
configuration reads a rotated token again by itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import list_kube_config_contexts, load_kube_config

from agent.domain.errors import NoCluster, SettingsError

if TYPE_CHECKING:
    from agent.settings import ClusterSettings


async def load_configuration(settings: ClusterSettings) -> Configuration:
    """Read the address of the API server and the credentials. No request is made.

    Raises:
        NoCluster: there is no usable configuration.
        SettingsError: the context does not exist.
    """
    configuration = Configuration()
    try:
        await load_credentials(configuration, settings)
    except (ConfigException, OSError) as error:
        names = context_names(settings)
        if names and settings.context and settings.context not in names:
            text = f"cluster.context: there is no context {settings.context!r}; there are: {', '.join(sorted(names))}"
            raise SettingsError(text) from error
        raise NoCluster(f"cluster: no cluster to use: {error}") from error
    # 0 means no limit. Every followed log, watch and exec holds a connection, and requests wait silently for a full
    # connection pool.
    configuration.connection_pool_maxsize = 0
    # The proxy variables are read once. With `trust_env`, aiohttp would read these variables and ~/.netrc for every
    # request.
    proxy = configuration.proxy or proxy_of(configuration.host)
    configuration.client_session_kwargs = {"read_bufsize": 1 << 16, "trust_env": False, "proxy": proxy}
    return configuration


async def load_credentials(configuration: Configuration, settings: ClusterSettings) -> None:
    """Load the kubeconfig or context of the settings, else the pod's service account, else the default kubeconfig."""
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


def context_names(settings: ClusterSettings) -> set[str]:
    """Return the names of the kubeconfig's contexts. Returns an empty set if the file has none or cannot be read."""
    try:
        contexts, _ = list_kube_config_contexts(  # type: ignore[no-untyped-call]
            str(settings.kubeconfig) if settings.kubeconfig else None
        )
        return {str(each["name"]) for each in contexts}
    except (ConfigException, OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return set()


def context_namespace(settings: ClusterSettings) -> str:
    """Return the namespace of the kubeconfig's context. "" if there is none, or if the agent runs in a pod."""
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    if in_pod and settings.kubeconfig is None and not settings.context:
        return ""
    try:
        contexts, current = list_kube_config_contexts(  # type: ignore[no-untyped-call]
            str(settings.kubeconfig) if settings.kubeconfig else None
        )
        named = [each for each in contexts if each["name"] == settings.context] if settings.context else [current]
        return str(named[0]["context"].get("namespace") or "") if named else ""
    except (ConfigException, OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return ""  # `load_configuration` reads the same file, and its error describes what is wrong.


def proxy_of(server: str) -> str | None:
    """Return the proxy for the API server that HTTPS_PROXY and NO_PROXY name."""
    url = urlsplit(server)
    if not url.hostname or proxy_bypass(url.hostname):
        return None
    return getproxies().get(url.scheme)

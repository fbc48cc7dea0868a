"""Changes to private parts of other libraries that the client needs. Each function names its measured reason.

Besides these functions, the module `lean_import` is a workaround. It is a module of its own, because it must run before
the first import of `kubernetes`. Look at all workarounds when Python, aiohttp or the Kubernetes library gets a new
version. Nothing here keeps state.
"""

from __future__ import annotations

from asyncio import sslproto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp
    from kubernetes.aio.client import ApiClient

TLS_BUFFER_BYTES = 64 << 10


def shrink_tls_buffers() -> None:
    """Give each new TLS connection of the process a read buffer of 64 KiB.

    asyncio allocates 256 KiB for each connection and has no setting for the size. Every followed log, watch and exec
    has a connection of its own. Measured: 2.2 ms of CPU for each MB read with 64 KiB, 2.6 ms with 256 KiB.
    """
    sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES


def session_of(api: ApiClient) -> aiohttp.ClientSession:
    """Return the `aiohttp.ClientSession` of the library. The first call creates the session.

    The session has the TLS trust and the client certificate of the configuration. The library creates the session only
    in its own `request`. The agent does not use `request`, because `request` copies each body twice, for models that
    the agent never sends.
    """
    rest = api.rest_client
    if rest.pool_manager is None:
        rest.pool_manager = rest._create_pool_manager()  # noqa: SLF001 - the library has no public way
    return rest.pool_manager

"""The one connection to the Kubernetes API: raw requests, deadlines, a rate limit, errors as values.

One `Client` lives as long as the agent. It speaks in plain dicts, because the client library's models cost 24 times
the CPU of the JSON they hold, and in raw streams, because the library's own log and watch readers replay, decode and
give up. Every request is counted; every failure leaves here as a `ClusterError` that says whether asking
again can help.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio import sslproto
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import structlog
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential

from agent.cluster.api.errors import failure
from agent.cluster.api.rate_limit import METRIC_LABELS, TokenBucket, priority_of
from agent.domain.errors import ClusterError, SettingsError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from agent.settings import ClusterSettings
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


# asyncio keeps a buffer of this size for each TLS connection; its 256 KiB are slower too (2.6 ms of CPU a MB, not 2.2).
sslproto.SSLProtocol.max_size = 64 << 10


class Client:
    """Requests to the API of one cluster. Opened with `connect`, closed with `close`."""

    def __init__(self, api: ApiClient, settings: ClusterSettings, metrics: Metrics) -> None:
        self.api = api
        self.settings = settings
        self.metrics = metrics
        self.bucket = TokenBucket(settings.requests_per_second)
        self.reachable = True
        self.ahead = timedelta()

    @classmethod
    async def connect(cls, settings: ClusterSettings, metrics: Metrics) -> Client:
        """Read the cluster's address and credentials; no request is made yet.

        Raises:
            SettingsError: there is no usable configuration.
        """
        configuration = Configuration()
        try:
            await load(configuration, settings)
        except (ConfigException, OSError) as error:
            raise SettingsError(f"cluster: no cluster to use: {error}") from error
        # 0 is no limit: every followed log, watch and exec holds a connection, and a full pool waits in silence.
        configuration.connection_pool_maxsize = 0
        # Read once: aiohttp's `trust_env` reads this, and ~/.netrc in a thread, for every request.
        proxy = configuration.proxy or proxy_of(configuration.host)
        configuration.client_session_kwargs = {"read_bufsize": 1 << 16, "trust_env": False, "proxy": proxy}
        return cls(ApiClient(configuration), settings, metrics)

    async def close(self) -> None:
        """Close all connections."""
        await self.api.close()  # type: ignore[no-untyped-call]

    def now(self) -> datetime:
        """Return the time by the clock of the API server, to the second; this machine's may be an hour off."""
        return datetime.now(UTC) + self.ahead

    async def request(
        self,
        verb: str,
        resource: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Object:
        """Make one request and return its JSON.

        Args:
            verb: as in RBAC: create, get, list, delete ...
            resource: as in RBAC: "pods", "pods/log" ...
            path: of the URL.

        Raises:
            ClusterError: anything but a 2xx answer.
        """
        timeout = aiohttp.ClientTimeout(total=self.settings.request_timeout)
        async with self.stream(verb, resource, path, body=body, query=query, timeout=timeout) as response:
            try:
                answer = json.loads(await response.read())
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                raise ClusterError(
                    f"{verb} {resource}: the answer broke off: {describe(error)}", retryable=True
                ) from error
        return answer if isinstance(answer, dict) else {}

    @asynccontextmanager
    async def stream(
        self,
        verb: str,
        resource: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make one request and hand out its body unread; the connection ends with the block.

        Raises:
            ClusterError: anything but a 2xx answer. Errors while the body is read are the caller's.
        """
        await self.acquire_slot(verb, resource)
        began, code = time.monotonic(), "error"
        try:
            response = await self.send(METHODS[verb], path, body, query, timeout)
            code = f"{response.status // 100}xx"
        except (aiohttp.ClientError, OSError, TimeoutError, ConfigException) as error:
            self.unanswered()
            raise ClusterError(f"{verb} {resource}: {describe(error)}", retryable=True) from error
        finally:
            self.metrics.requests.labels(verb, resource, code).inc()
            self.metrics.request_duration.labels(verb, resource).observe(time.monotonic() - began)
        self.reachable = True
        self.metrics.cluster_reachable.set(1)
        self.set_clock(response.headers.get("Date"))
        async with response:
            if response.status >= 300:
                raise failure(verb, resource, response.status, response.headers, await text_of(response))
            yield response

    async def acquire_slot(self, verb: str, resource: str) -> None:
        """Wait until the client-side limit lets this request through."""
        began = time.monotonic()
        priority = priority_of(verb, resource)
        await self.bucket.acquire(priority)
        self.metrics.request_wait.labels(METRIC_LABELS[priority]).observe(time.monotonic() - began)

    def unanswered(self) -> None:
        """Take note that the cluster did not answer; the next answer makes it reachable again."""
        self.reachable = False
        self.metrics.cluster_reachable.set(0)

    def set_clock(self, date: str | None) -> None:
        """Note how far the server's clock is ahead, by the second of its answer; less than two are noise."""
        if date is None:
            return
        ahead = parsedate_to_datetime(date) - datetime.now(UTC)
        self.ahead = ahead if abs(ahead) > CLOCK_NOISE else timedelta()

    async def send(
        self,
        method: str,
        path: str,
        body: Object | None,
        query: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """Send the request with the credentials of the configuration; returns when the answer's head is there."""
        # Not by the library's `call_api`, which copies each body twice to serialize models that are never in it.
        data = None if body is None else json.dumps(body).encode()
        kind = MERGE if method == "PATCH" else JSON
        return await self.session.request(
            method,
            self.url(path, (query or {}).items()),
            data=data,
            headers=await self.credentials() | {"Accept": JSON, "Content-Type": kind},
            timeout=timeout,
            server_hostname=self.server_hostname,
        )

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connections to the API, with the trust of the configuration."""
        rest = self.api.rest_client
        if rest.pool_manager is None:
            rest.pool_manager = rest._create_pool_manager()
        return rest.pool_manager

    @property
    def server_hostname(self) -> str | None:
        """The name that the server's certificate carries, where that is not its address."""
        return self.api.configuration.tls_server_name or None

    def url(self, path: str, query: Iterable[tuple[str, str]]) -> str:
        """Return the URL of a request."""
        text = urlencode(list(query), quote_via=quote)
        return f"{self.api.configuration.host}{path}{'?' if text else ''}{text}"

    async def credentials(self) -> dict[str, str]:
        """Return the headers that say who asks; a token that was rotated is read again."""
        found = await self.api.configuration.auth_settings()
        return self.api.default_headers | {each["key"]: each["value"] for each in found.values()}

    async def probe(self) -> None:
        """Find out whether the cluster answers again; only `reachable` tells."""
        try:
            await self.request("get", "version", "/version")
        except ClusterError as error:
            log.debug("the cluster does not answer yet", error=error.message)

    async def retry(
        self,
        what: str,
        attempt: Callable[[], Awaitable[Object]],
        *,
        seconds: float,
        notify: Callable[[str], Awaitable[None]] | None = None,
    ) -> Object:
        """Repeat `attempt` while it fails in a way that may pass, honouring Retry-After, for `seconds`.

        `notify` is told each time for what it waits.

        Raises:
            ClusterError: the last one.
        """

        async def say(state: RetryCallState) -> None:
            log.warning("asking the cluster again", what=what, error=last_error(state))
            if notify is not None:
                await notify(last_error(state))

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, ClusterError) and error.retryable),
            stop=stop_after_delay(seconds),
            # The last try is at the limit, not a Retry-After behind it.
            wait=lambda state: min(wait_as_told(state), max(0.0, seconds - (state.seconds_since_start or 0.0))),
            before_sleep=say,
            reraise=True,
        )
        async for attempt_context in retrying:
            with attempt_context:
                return await attempt()
        raise AssertionError("unreachable")  # pragma: no cover


CLOCK_NOISE = timedelta(seconds=2)
JSON, MERGE = "application/json", "application/merge-patch+json"
METHODS = {"create": "POST", "get": "GET", "list": "GET", "watch": "GET", "delete": "DELETE", "patch": "PATCH"}
backoff = wait_random_exponential(multiplier=0.2, max=10)


def wait_as_told(state: RetryCallState) -> float:
    """Wait as long as the server asked for, else with full jitter."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, ClusterError) and error.retry_after is not None:
        return min(error.retry_after, 60.0)
    return backoff(state)


def describe(error: BaseException) -> str:
    """Return for people why there was no answer."""
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or repr(error)


def last_error(state: RetryCallState) -> str:
    """Return what the last try failed with."""
    return str(state.outcome.exception()) if state.outcome else ""


async def load(configuration: Configuration, settings: ClusterSettings) -> None:
    """Fill the configuration: an explicit kubeconfig or context first, else in-cluster, else the default file."""
    if settings.kubeconfig is None and not settings.context:
        try:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except ConfigException:
            pass  # not in a cluster: the default kubeconfig is the other place to look
        else:
            return
    await load_kube_config(  # type: ignore[no-untyped-call]
        config_file=str(settings.kubeconfig) if settings.kubeconfig else None,
        context=settings.context or None,
        client_configuration=configuration,
    )


def proxy_of(server: str) -> str | None:
    """Return the proxy that the environment names for the API server, as HTTPS_PROXY and NO_PROXY say."""
    url = urlsplit(server)
    if not url.hostname or proxy_bypass(url.hostname):
        return None
    return getproxies().get(url.scheme)


async def text_of(response: aiohttp.ClientResponse) -> str:
    """Read the body of a failure, bounded and tolerant."""
    try:
        async with asyncio.timeout(10):
            return (await response.content.read(1 << 16)).decode("utf-8", "replace")
    except (aiohttp.ClientError, OSError, TimeoutError):
        return ""

"""The agent's one client of the Kubernetes API: raw requests, deadlines, a rate limit, failures as `ClusterError`.

One `Client` lives as long as the agent. Objects are plain dicts, because the library's models need 24 times the CPU
time of plain JSON. Logs and watches are raw streams, because the library's readers decode the data, repeat data after a
reconnect, and stop at the first error. Every request is counted. Every failure is a `ClusterError`, which states
whether a retry can help.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import aiohttp
import structlog
from kubernetes.aio.client import ApiClient
from kubernetes.aio.config.config_exception import ConfigException
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential

from agent.cluster.api.configuration import load_configuration
from agent.cluster.api.errors import failure
from agent.cluster.api.rate_limit import METRIC_LABELS, Priority, TokenBucket, priority_of
from agent.cluster.api.timings import ApiTimings
from agent.cluster.api.workarounds import session_of, shrink_tls_buffers
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from agent.settings import ClusterSettings
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

DEFAULT_TIMINGS = ApiTimings()
# Smallest difference between the API server's clock and the agent's clock that the agent corrects. The Date header has
# whole seconds, so smaller differences mean nothing.
CLOCK_NOISE = timedelta(seconds=2)
JSON, MERGE_PATCH = "application/json", "application/merge-patch+json"
# The form of an answer that no caller reads. The whole pod has 24 KB (measured), and its metadata has 5 KB.
METADATA = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1, {JSON}"
# The content type of a patch that names an element of a list, such as one container, by its key.
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
# The HTTP method of each RBAC verb.
METHODS = {"create": "POST", "get": "GET", "list": "GET", "watch": "GET", "delete": "DELETE", "patch": "PATCH"}
# Maximum number of bytes that are read from the body of a response with an error status. Reading the body ends after
# `FAILURE_READ_SECONDS`.
MAX_FAILURE_BYTES = 1 << 16
FAILURE_READ_SECONDS = 10

# This call changes the whole process, so it comes before the first connection.
shrink_tls_buffers()


class Client:
    """Requests to the API of one cluster. The application opens it with `connect` and closes it with `close`."""

    def __init__(
        self, api: ApiClient, settings: ClusterSettings, metrics: Metrics, timings: ApiTimings | None = None
    ) -> None:
        self.api = api
        self.settings = settings
        self.metrics = metrics
        self.timings = timings or DEFAULT_TIMINGS
        self.bucket = TokenBucket(settings.requests_per_second)
        self.reachable = True
        self.ahead = timedelta()

    @classmethod
    async def connect(cls, settings: ClusterSettings, metrics: Metrics) -> Client:
        """Read the cluster's address and credentials. No request is made yet.

        Raises:
            SettingsError: there is no usable configuration.
        """
        return cls(ApiClient(await load_configuration(settings)), settings, metrics)

    async def close(self) -> None:
        await self.api.close()  # type: ignore[no-untyped-call]

    def now(self) -> datetime:
        """Return the time of the API server's clock, to the second. The agent's clock may be an hour off."""
        return datetime.now(UTC) + self.ahead

    async def request(
        self,
        verb: str,
        resource: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        patch: str = MERGE_PATCH,
        priority: Priority | None = None,
    ) -> Object:
        """Make one request and return its JSON.

        Args:
            verb: as in RBAC: create, get, list, delete ...
            resource: as in RBAC: "pods", "pods/log" ...
            path: the path of the URL.
            patch: the content type of the body if the verb is patch.
            priority: the place in the queue of the rate limit. None for the usual place of this verb and resource.

        Raises:
            ClusterError: the answer is not 2xx, or no whole answer came in time.
        """
        timeout = aiohttp.ClientTimeout(total=self.settings.request_timeout)
        async with self.stream(
            verb, resource, path, body=body, query=query, timeout=timeout, patch=patch, priority=priority
        ) as response:
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
        patch: str = MERGE_PATCH,
        priority: Priority | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make one request and yield its unread response.

        The connection is closed at the end of the caller's `async with` block.

        Raises:
            ClusterError: the answer is not 2xx, or no response headers came. The caller handles errors while it reads
            the body.
        """
        await self.acquire_slot(verb, resource, priority)
        began, code = time.monotonic(), "error"
        try:
            response = await self.send(METHODS[verb], path, body, query, timeout, patch)
            code = f"{response.status // 100}xx"
        except (aiohttp.ClientError, OSError, TimeoutError, ConfigException) as error:
            self.mark_unreachable()
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

    async def acquire_slot(self, verb: str, resource: str, priority: Priority | None = None) -> None:
        """Wait until the client-side rate limit admits the request."""
        began = time.monotonic()
        priority = priority_of(verb, resource) if priority is None else priority
        await self.bucket.acquire(priority)
        self.metrics.request_wait.labels(METRIC_LABELS[priority]).observe(time.monotonic() - began)

    def mark_unreachable(self) -> None:
        """Record that the API server did not answer. The API server's next answer ends this state."""
        self.reachable = False
        self.metrics.cluster_reachable.set(0)

    def set_clock(self, date: str | None) -> None:
        """Record how far the API server's clock is ahead of the agent's, from the Date header of an answer."""
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
        patch: str,
    ) -> aiohttp.ClientResponse:
        """Send the request with the configured credentials. Returns when the head of the answer has arrived."""
        data = None if body is None else json.dumps(body).encode()
        kind = patch if method == "PATCH" else JSON
        accept = METADATA if method == "DELETE" or path.endswith("/resize") else JSON
        return await self.session.request(
            method,
            self.url(path, (query or {}).items()),
            data=data,
            headers=await self.credentials() | {"Accept": accept, "Content-Type": kind},
            timeout=timeout,
            server_hostname=self.server_hostname,
        )

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session that holds the connections to the API server, with the configured TLS trust."""
        return session_of(self.api)

    @property
    def server_hostname(self) -> str | None:
        """The name in the API server's certificate, if the name is not the server's address."""
        return self.api.configuration.tls_server_name or None

    def url(self, path: str, query: Iterable[tuple[str, str]]) -> str:
        text = urlencode(list(query), quote_via=quote)
        return f"{self.api.configuration.host}{path}{'?' if text else ''}{text}"

    async def credentials(self) -> dict[str, str]:
        """Return the headers of authentication. The Kubernetes library reads a rotated token again."""
        found = await self.api.configuration.auth_settings()
        return self.api.default_headers | {each["key"]: each["value"] for each in found.values()}

    async def probe(self) -> None:
        """Request the API server's version, so that `reachable` is up to date. A failure is only logged."""
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
        """Call `attempt` again for up to `seconds`, while it fails with a retryable error.

        Waits as long as a Retry-After header demands. `notify` is called with the error's text before each pause.

        Raises:
            ClusterError: the last error.
        """

        async def report(state: RetryCallState) -> None:
            log.warning("a request failed and is retried", what=what, error=last_error(state))
            if notify is not None:
                await notify(last_error(state))

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, ClusterError) and error.retryable),
            stop=stop_after_delay(seconds),
            # The last try is at the time limit. A Retry-After must not delay the last try beyond this limit.
            wait=lambda state: min(
                retry_pause(state, self.timings), max(0.0, seconds - (state.seconds_since_start or 0.0))
            ),
            before_sleep=report,
            reraise=True,
        )
        async for attempt_context in retrying:
            with attempt_context:
                return await attempt()
        raise AssertionError("unreachable")  # pragma: no cover


def retry_pause(state: RetryCallState, timings: ApiTimings) -> float:
    """Return the seconds before the next try: the Retry-After header, else an exponential back-off with full jitter."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, ClusterError) and error.retry_after is not None:
        return min(error.retry_after, timings.longest_retry_after)
    return wait_random_exponential(multiplier=timings.retry_pause, max=timings.longest_retry_pause)(state)


def describe(error: BaseException) -> str:
    """Return why a request got no answer. The text of an aiohttp error may be empty."""
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or repr(error)


def last_error(state: RetryCallState) -> str:
    return str(state.outcome.exception()) if state.outcome else ""


async def text_of(response: aiohttp.ClientResponse) -> str:
    """Read the first part of a failed answer. Returns "" if the body cannot be read."""
    try:
        async with asyncio.timeout(FAILURE_READ_SECONDS):
            return (await response.content.read(MAX_FAILURE_BYTES)).decode("utf-8", "replace")
    except (aiohttp.ClientError, OSError, TimeoutError):
        return ""

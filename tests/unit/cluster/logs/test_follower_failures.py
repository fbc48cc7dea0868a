"""Answers of the API server that are not a log: the log follower retries, or ends the log with the reason."""

from __future__ import annotations

import pytest
from aiohttp import web

from agent.cluster.logs.source import LogState, Timings
from agent.domain.observations import LogEnd, LogGap, LogLost
from tests.unit.cluster.logs.log_server import LogServer, others, payload

QUICK = Timings(pause=0.001, longest_pause=0.001, refused=0, give_up=0)


@pytest.mark.parametrize("code", [401, 429, 500, 503])
async def test_a_failed_request_is_retried(api: LogServer, code: int) -> None:
    api.log.write(b"one\n")
    api.script = [api.status(code)] * 3
    items = await api.read(timings=QUICK)
    assert payload(items) == b"one\n"
    assert others(items) == [LogEnd()]


async def test_retry_after_is_obeyed(api: LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("agent.cluster.logs.failures.asyncio.sleep", sleep)
    api.log.write(b"one\n")
    api.script = [api.status(429, **{"Retry-After": "7"}), api.status(503, **{"Retry-After": "9999"})]
    assert payload(await api.read()) == b"one\n"
    assert slept == [7, 60]


async def test_the_follower_waits_for_a_container_that_has_not_started(api: LogServer) -> None:
    api.log.write(b"one\n")
    waiting = 'container "helper" in pod "pod-1" is waiting to start: ContainerCreating'
    api.script = [api.status(400, waiting)] * 30
    items = await api.read(timings=QUICK)
    assert payload(items) == b"one\n"
    assert others(items) == [LogEnd()]


async def test_a_pod_that_is_gone_ends_the_log(api: LogServer) -> None:
    api.script = [api.status(404, 'pods "pod-1" not found')]
    assert await api.read() == [LogLost("the pod is gone")]
    api.source.enter(LogState.GONE)
    assert await api.read() == [LogLost("the pod is gone")]
    assert len(api.queries) == 1


@pytest.mark.parametrize("code", [400, 403, 404])
async def test_a_lasting_refusal_ends_the_log(api: LogServer, code: int) -> None:
    api.script = [api.status(code, "no")] * 1000
    items = await api.read()
    assert items == [LogLost(f"get pods/log: no (HTTP {code})")]
    assert len(api.queries) > 1


async def test_the_log_of_an_ended_helper_is_given_up_after_a_while(api: LogServer) -> None:
    api.source.enter(LogState.ABANDONED)
    api.script = [api.status(500, "no")] * 1000
    assert await api.read() == [LogLost("get pods/log: no (HTTP 500)")]
    assert len(api.queries) > 1


@pytest.mark.parametrize("state", [LogState.OPEN, LogState.ABANDONED])
async def test_an_error_message_of_the_kubelet_is_not_log(api: LogServer, state: LogState) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text="unable to retrieve container logs for containerd://0123")

    api.source.enter(state)
    api.script = [answer] * 1000
    assert await api.read() == [LogLost("the node no longer has the container's log")]


@pytest.mark.parametrize("code", [403, 500])
async def test_a_file_that_cannot_be_read_leaves_a_gap_of_known_size(api: LogServer, code: int) -> None:
    """After the gap, the agent still reads the stream. It fills a later gap from the file once an exec works again."""
    api.log.write(b"one\n")
    api.log.skip(b"lost")
    api.log.write(b"two\n")
    position = len(api.log.content)
    body = len(api.log.body())
    api.log.skip(b"found")
    api.log.write(b"three\n")

    async def working(request: web.Request) -> web.StreamResponse:
        api.execs = []
        return await api.errand(request)

    async def rest(request: web.Request) -> web.StreamResponse:
        api.execs = [working]
        return await api.whole(request)

    api.script = [api.part(0, body), rest]
    api.execs = [api.status(code, "no")] * 1000
    items = await api.read()
    assert payload(items) == b"one\ntwo\nfoundthree\n"
    assert others(items) == [LogGap(4, 4), LogEnd()]
    assert api.errands[-1] == (position, "once")


async def test_the_stream_is_read_if_the_file_can_never_be_read(api: LogServer) -> None:
    api.log.write(b"0123456789abcde\n" * (1 << 17))
    api.execs = [api.status(403, "no")] * 1000
    items = await api.read()
    assert payload(items) == api.log.content
    assert others(items) == [LogEnd()]

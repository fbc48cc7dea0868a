"""Answers of the API server that are not a log: the log follower retries, or ends the log with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from agent.cluster.logs.follower import ContainerState, Timings
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogLost
from tests.fakes.kubelet_log import EPOCH
from tests.unit.cluster.logs.log_server import LogServer, others, payload

if TYPE_CHECKING:
    pass


@pytest.mark.parametrize("code", [401, 429, 500, 503])
async def test_a_failed_request_is_retried(api: LogServer, code: int) -> None:
    api.log.write(b"one\n", EPOCH)
    api.script = [api.status(code)] * 3
    items = await api.read(timings=Timings(pause=0.001, longest_pause=0.001, refused=0, give_up=0))
    assert payload(items) == b"one\n"
    assert others(items) == []


async def test_retry_after_is_obeyed(api: LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("agent.cluster.logs.follower.asyncio.sleep", sleep)
    api.log.write(b"one\n", EPOCH)
    api.script = [api.status(429, **{"Retry-After": "7"}), api.status(503, **{"Retry-After": "9999"})]
    assert payload(await api.read()) == b"one\n"
    assert slept == [7, 60]


async def test_the_follower_waits_for_a_container_that_has_not_started(api: LogServer) -> None:
    api.log.write(b"one\n", EPOCH)
    waiting = 'container "action" in pod "pod-1" is waiting to start: ContainerCreating'
    api.script = [api.status(400, waiting)] * 30
    items = await api.read(timings=Timings(pause=0.001, longest_pause=0.001, refused=0))
    assert payload(items) == b"one\n"
    assert others(items) == []


async def test_a_pod_that_is_gone_ends_the_log(api: LogServer) -> None:
    api.script = [api.status(404, 'pods "pod-1" not found')]
    assert await api.read() == [LogLost("the pod is gone")]
    api.container.enter(ContainerState.GONE)
    assert await api.read() == [LogLost("the pod is gone")]
    assert len(api.queries) == 1


@pytest.mark.parametrize("code", [400, 403, 404])
async def test_a_lasting_refusal_ends_the_log(api: LogServer, code: int) -> None:
    api.script = [api.status(code, "no")] * 1000
    items = await api.read()
    assert items == [LogLost(f"get pods/log: no (HTTP {code})")]
    assert len(api.queries) > 1


async def test_the_log_of_an_ended_container_is_given_up_after_a_while(api: LogServer) -> None:
    api.container.enter(ContainerState.TERMINATED)
    api.script = [api.status(500, "no")] * 1000
    assert await api.read() == [LogLost("get pods/log: no (HTTP 500)")]
    assert len(api.queries) > 1


@pytest.mark.parametrize("state", [ContainerState.RUNNING, ContainerState.TERMINATED])
async def test_an_error_message_of_the_kubelet_is_not_log(api: LogServer, state: ContainerState) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text="unable to retrieve container logs for containerd://0123")

    api.container.enter(state)
    api.script = [answer] * 1000
    assert await api.read() == [LogLost("the node no longer has the container's log")]


async def test_a_malformed_cursor_ends_the_log(api: LogServer) -> None:
    items = await api.read(Cursor("yesterday", 1))
    assert [type(item) for item in items] == [LogLost]

"""The log of a service: its last lines, and a reader that loses no line and reads none twice."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from agent.cluster.environment.services import MAX_BYTES, LineReader, PodServices, Position
from agent.cluster.environment.watch import PodState
from agent.domain.errors import ClusterError
from tests.unit.cluster.logs.log_server import serving
from tests.unit.cluster.pod.pods import pod, running, terminated, waiting

TIMES = ["2026-11-27T20:00:00.000000001Z", "2026-11-27T20:00:00.000000001Z", "2026-11-27T20:00:01.500000000Z"]
LOG = b"".join(f"{time} line {number}\n".encode() for number, time in enumerate(TIMES, 1))


def test_lines_lose_their_times() -> None:
    reader = LineReader(Position())
    assert reader.feed(LOG) == b"line 1\nline 2\nline 3\n"
    assert reader.position == Position(TIMES[2], 1)


@pytest.mark.parametrize("cut", range(1, len(LOG)))
def test_any_cut_gives_the_same_lines(cut: int) -> None:
    reader = LineReader(Position())
    assert reader.feed(LOG[:cut]) + reader.feed(LOG[cut:]) == b"line 1\nline 2\nline 3\n"


@pytest.mark.parametrize("read", [1, 2, 3])
def test_a_new_request_continues_after_the_last_line(read: int) -> None:
    lines = LOG.splitlines(keepends=True)
    first = LineReader(Position())
    before = first.feed(b"".join(lines[:read]))
    stored = Position.decode(first.position.encode())
    # The node sends all lines from the second of the position on.
    assert before + LineReader(stored).feed(LOG) == b"line 1\nline 2\nline 3\n"
    assert stored.since in ("2026-11-27T20:00:00Z", "2026-11-27T20:00:01Z")


def test_a_long_line_is_cut_and_bounds_the_memory() -> None:
    reader = LineReader(Position())
    text = reader.feed(TIMES[0].encode() + b" " + b"x" * (3 * MAX_BYTES)) + reader.feed(b"y\n")
    assert text.replace(b"\n", b"") == b"x" * (3 * MAX_BYTES) + b"y"
    assert len(reader.rest) == 0


def test_the_rest_of_a_long_line_that_was_read_before_is_dropped() -> None:
    line = TIMES[0].encode() + b" " + b"x" * (2 * MAX_BYTES) + b"y\n"
    first = LineReader(Position())
    first.feed(line)
    again = LineReader(first.position)
    found = again.feed(line[: 2 * MAX_BYTES]) + again.feed(line[2 * MAX_BYTES :] + LOG[-38:])
    assert found == b"line 3\n"


@pytest.mark.parametrize("data", [b"", b"2|a|1", b"\xff", b"1|now|1", b"1|" + b"1" * 50 + b"|1"])
def test_a_strange_cursor_is_the_start_of_the_log(data: bytes) -> None:
    assert Position.decode(data) == Position()
    assert Position().since == ""


def test_a_log_is_followed_only_when_the_container_of_its_service_has_started() -> None:
    state = PodState("pod")
    environment: Any = SimpleNamespace(client=None, pod_state=state)
    services = PodServices(environment)
    assert (services.has_started("db"), services.has_ended("db")) == (False, False)
    state.update(pod(waiting("service-db")))
    assert not services.has_started("db")
    state.update(pod(running("service-db")))
    assert (services.has_started("db"), services.has_ended("db")) == (True, False)
    state.update(pod(terminated("service-db", 1)))
    assert services.has_ended("db")
    # The watch reports the deletion of a pod with the last state of the pod.
    state.update(None, pod(running("service-db")))
    assert services.has_ended("db")


def services_of(client: Any, turns: int = 1) -> PodServices:
    """Return the services of a pod whose service `db` has ended."""
    state = PodState("pod-1")
    state.update(pod(terminated("service-db", 1)))
    context = SimpleNamespace(live_logs=asyncio.Semaphore(turns))
    plan = SimpleNamespace(name="pod-1")
    environment = SimpleNamespace(
        client=client, pod_state=state, path="/api/v1/namespaces/actions/pods", plan=plan, context=context
    )
    return PodServices(environment)  # type: ignore[arg-type]  # it has the attributes that PodServices uses


LONG_LINES = [b"%07d " % number + b"x" * 4087 + b"\n" for number in range(1000)]


@pytest.mark.parametrize(
    ("log", "last"),
    [
        (b"one\ntwo\n", b"one\ntwo\n"),
        (b"no line end", b"no line end\n"),
        (b"", b""),
        # A line that is cut at its start is left out.
        (b"".join(LONG_LINES), b"".join(LONG_LINES[-15:])),
        (b"first\n" + b"x" * (2 * MAX_BYTES), b"x" * (MAX_BYTES - 1) + b"\n"),
    ],
    ids=["short", "no line end", "empty", "long", "one long line"],
)
async def test_the_last_lines_of_a_log_are_whole_lines_of_at_most_64_kib(log: bytes, last: bytes) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=log)

    async with serving() as api:
        api.script = [answer]
        assert await services_of(api.client).last_lines("db") == last
        assert api.queries == [{"container": "service-db", "tailLines": "1000", "limitBytes": str(16 << 20)}]
        assert await services_of(api.client).last_lines("unknown") == b""
        assert len(api.queries) == 1, "a service that never started costs no request"


async def test_the_number_of_logs_that_are_followed_is_bounded() -> None:
    follows = services_of(None, turns=0).live_log("db", b"")
    with pytest.raises(ClusterError, match="follows as many logs of services as it can"):
        await anext(follows)

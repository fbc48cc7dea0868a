"""The agent with a scheduler that behaves as a real SealCI 0.2 scheduler.

Such a scheduler picks the agent with the lowest score, never removes dead agents, and retries nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from agent.scheduler.classic.timings import ClassicTimings
from agent.scheduler.classic.wire import actions_pb2
from tests.fakes.classic import Answer, ClassicScheduler, asked, read
from tests.fakes.classic_agent import World, running_environment, worlds
from tests.fakes.cluster import Script
from tests.fakes.waiting import poll_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOLD = Script(holds=frozenset({"commands"}))


@asynccontextmanager
async def pools(count: int, *, slots: int = 10) -> AsyncIterator[tuple[ClassicScheduler, list[World]]]:
    """Run `count` agents that share one fake scheduler. Each agent has `slots` slots."""
    scheduler = ClassicScheduler()
    await scheduler.start()
    try:
        async with AsyncExitStack() as stack:
            agents = [
                await stack.enter_async_context(worlds(scheduler=scheduler, agent={"slots": slots}))
                for _ in range(count)
            ]
            yield scheduler, agents
    finally:
        await scheduler.stop()


async def test_a_leaving_agent_is_chosen_last() -> None:
    async with pools(2) as (scheduler, (leaving, other)):
        leaving.backend.script = lambda _: HOLD
        call, answer = scheduler.dial(asked("alpine", "a"), leaving.entry), Answer()
        environment = await running_environment(leaving)
        leaving.sessions.drain("the agent leaves")
        leaving.connection.health.notify()
        await scheduler.until("the agent reports the maximum", lambda: leaving.entry.is_last)
        while_it_drains = await scheduler.run("alpine", "a")
        assert (while_it_drains.exit_code, len(other.backend.environments)) == (0, 1)
        await environment.run_commands()
        await environment.unblock("commands")
        await read(call, answer)
        await leaving.connection.close()
        await scheduler.until("the agent has left", lambda: leaving.entry.gone)
        assert [(await scheduler.run("alpine", "a")).exit_code for _ in range(3)] == [0, 0, 0]


async def test_actions_go_to_the_idle_agent_and_calls_that_wait_count_as_load() -> None:
    async with pools(2, slots=2) as (scheduler, agents):
        for agent in agents:
            agent.backend.script = lambda _: HOLD
        calls = []
        for count in range(1, 7):
            entry = scheduler.best()
            before = entry.score
            calls.append(scheduler.dial(asked("alpine", "a", number=count), entry))
            await scheduler.until("the agent reports more load", lambda: entry.score > before)  # noqa: B023 - at once
        taken = [len(agent.sessions.sessions) + len(agent.connection.service.waiting) for agent in agents]
        assert taken == [3, 3]
        assert [agent.entry.load for agent in agents] == [150, 150]
        for call in calls:
            call.cancel()


async def test_an_agent_without_a_cluster_is_chosen_last_and_a_new_one_does_not_register() -> None:
    async with pools(2) as (scheduler, (dead, other)):
        dead.backend.reachable = False
        dead.connection.health.notify()
        await scheduler.until("the agent reports the maximum", lambda: dead.entry.is_last)
        assert (await scheduler.run("alpine", "a")).exit_code == 0
        assert len(other.backend.environments) == 1
        dead.backend.reachable = True
        dead.connection.health.notify()
        await scheduler.until("the agent reports that it is idle", lambda: dead.entry.score == 0)
        async with worlds(scheduler=scheduler, reachable=False) as late:
            assert (await scheduler.run("alpine", "a")).exit_code == 0
            assert scheduler.registrations == 2
            late.backend.reachable = True
            late.connection.health.notify()
            await scheduler.until("the third agent has registered", lambda: late.reported)


async def test_after_a_kill_the_other_agents_at_the_same_address_get_the_actions() -> None:
    """Here a TCP proxy is the one address of all agents. In a cluster, this address is the chart's Service."""
    backends: list[int] = []
    count = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def front(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        to_agent, from_agent = await asyncio.open_connection("127.0.0.1", backends[count % len(backends)])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, from_agent))
            tasks.create_task(pump(to_agent, writer))

    async with await asyncio.start_server(front, "127.0.0.1", 0) as server, pools(2) as (scheduler, agents):
        backends = [agent.connection.port for agent in agents]
        for entry in scheduler.pool.values():
            entry.port = server.sockets[0].getsockname()[1]
        assert [(await scheduler.run("alpine", "a")).exit_code for _ in range(4)] == [0] * 4
        assert [len(agent.backend.environments) for agent in agents] == [2, 2]
        # The first agent counts as dead from here on. The proxy drops it, as a Service drops a pod that is not ready.
        scheduler.pool[0].gone, backends = True, backends[1:]
        assert [(await scheduler.run("alpine", "a")).exit_code for _ in range(4)] == [0] * 4
        for channel in scheduler.channels:
            await channel.close()


async def test_a_nul_in_the_output_does_not_break_the_client() -> None:
    async with worlds() as world:
        world.backend.script = lambda _: Script(output=b"a\0b\n")
        answer = await world.scheduler.run("alpine", "a")
        assert not answer.client_failed
        assert (answer.exit_code, "a\ufffdb\n" in answer.text) == (0, True)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (actions_pb2.ActionRequest(action_id=1, commands=["a"]), "context is missing"),
        (asked("", "a"), "container_image is missing"),
        (
            actions_pb2.ActionRequest(context=actions_pb2.ExecutionContext(type=9, container_image="x")),  # type: ignore[arg-type]
            "context.type 9",
        ),
        (asked("alpine", "a", repo_url="https://me:secret@git.example/x"), "clone_credentials"),
        (asked("alpine", "a", repo_url="git://me:secret@git.example/x"), "clone_credentials"),
        (asked("alpine", "a", repo_url="ssh://me:secret@git.example/x"), "clone_credentials"),
    ],
)
async def test_a_refused_request_gets_a_response_with_the_reason(
    request_: actions_pb2.ActionRequest, text: str
) -> None:
    async with worlds() as world:
        answer = Answer()
        await read(world.scheduler.dial(request_), answer)
        assert (answer.code, answer.exit_code, answer.statuses[-1]) == (grpc.StatusCode.OK, 125, 3)
        assert text in answer.text
        assert "secret" not in answer.text
        assert world.backend.environments == {}


async def test_a_client_that_goes_away_is_noticed_while_the_command_is_silent() -> None:
    async with worlds(timings=ClassicTimings(silence=0.05)) as world:
        world.backend.script = lambda _: HOLD
        answer = Answer()
        reading = asyncio.create_task(read(world.scheduler.dial(asked("alpine", "sleep 3600")), answer))
        environment = await running_environment(world)
        await poll_until("the client has seen that the action runs", lambda: 2 in answer.statuses)
        answer.client_gone = True
        await reading
        await world.until_clean()
        assert environment.steps[-1] == "removed"


async def test_the_log_shows_the_progress_of_the_set_up_and_the_commands() -> None:
    async with worlds(echo=True) as world:
        answer = await world.scheduler.run("alpine", "a", "b")
    assert answer.text == "[pulling]\n$ a\nhello\n$ b\nhello\n"


@pytest.mark.parametrize("number", [1, 3])
async def test_every_fault_of_a_request_is_named_once(number: int) -> None:
    async with worlds() as world:
        answer = await world.scheduler.run("alpine", *["a\0"] * number, repo_url="hello")
    assert (answer.exit_code, answer.text.count("a NUL byte cannot be part")) == (125, number)
    assert answer.text.count("repository.url: ") == 1
    assert "'of a path'" not in answer.text


async def test_a_waiting_call_whose_client_goes_away_leaves_the_queue() -> None:
    async with worlds(agent={"slots": 1}, timings=ClassicTimings(silence=0.05)) as world:
        world.backend.script = lambda _: HOLD
        running = world.scheduler.dial(asked("alpine", "a"))
        await running_environment(world)
        answer = Answer()
        reading = asyncio.create_task(read(world.scheduler.dial(asked("alpine", "b"), world.entry), answer))
        await poll_until("the client has seen that the action waits", lambda: "waits" in answer.text)
        answer.client_gone = True
        await reading
        await poll_until("no call waits", lambda: not world.connection.service.waiting)
        running.cancel()


async def test_the_secret_of_a_clone_follows_from_its_host() -> None:
    async with worlds(clone_credentials={"git.example": "deploy-key"}) as world:
        await world.scheduler.run("alpine", "a", repo_url="https://git.example/x")
        (environment,) = world.backend.environments.values()
        assert environment.action.repository is not None
        assert environment.action.repository.credentials == "deploy-key"


@pytest.mark.parametrize("callers", [["192.0.2.0/24"], ["192.0.2.0/24", "2001:db8::/32"]])
async def test_a_call_from_an_address_that_is_no_caller_runs_nothing(callers: list[str]) -> None:
    # Attack: a pod or a machine that is not the scheduler calls the agent's port, which has no password.
    async with worlds(callers=callers) as world:
        call = world.scheduler.dial(asked("alpine", "id"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not world.backend.environments


@pytest.mark.parametrize("callers", [["127.0.0.0/8"], ["scheduler"], ["192.0.2.1", "scheduler"]])
async def test_a_call_from_a_caller_runs(callers: list[str]) -> None:
    async with worlds(callers=callers) as world:
        assert (await world.scheduler.run("alpine", "id")).exit_code == 0

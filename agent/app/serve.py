"""Runs one agent to its end: connects to the cluster, builds the agent, and turns its end into an exit code."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

import structlog

from agent.app.agent import VERSION, App
from agent.app.wiring import TIMINGS, build
from agent.cluster.api.client import Client
from agent.domain.errors import Refused, SettingsError
from agent.telemetry.metrics import Metrics
from agent.telemetry.traces import Traces

if TYPE_CHECKING:
    from agent.app.timings import AppTimings
    from agent.cluster.environment.interactive.debugging import DebugOptions
    from agent.settings import Settings

log = structlog.get_logger(__name__)

# Exit code if the scheduler refuses this version of the agent.
REFUSED = 4


async def serve(
    settings: Settings,
    on_start: asyncio.Future[App] | None = None,
    debug: DebugOptions | None = None,
    timings: AppTimings = TIMINGS,
) -> int:
    """Run one agent to its end. Returns the exit code of the process.

    `on_start` is a future. It receives the agent before the agent runs.

    Raises:
        SettingsError: the settings name no usable cluster, or the library for traces is not installed.
        OSError: the HTTP port cannot be opened.
    """
    raise_file_limit()
    traces = open_traces(settings)
    client = await Client.connect(settings.cluster, Metrics(VERSION, settings.metrics))
    code = 0
    try:
        async with asyncio.TaskGroup() as task_group:
            app = build(settings, client, task_group, traces, debug, timings)
            if on_start is not None:
                on_start.set_result(app)
            await app.run()
    except ExceptionGroup as group:
        # The agent's first task that failed has ended the other tasks. Callers expect the error of the first task, not
        # a group of errors.
        first = first_error(group)
        if not isinstance(first, Refused):
            raise first from group
        log.error("the scheduler refuses this version of the agent", reason=str(first))
        code = REFUSED
    finally:
        await client.close()
        await asyncio.to_thread(traces.close)
    return code


def first_error(group: ExceptionGroup[Exception]) -> Exception:
    """Return the error that a group of errors began with. An item of the group can be a group itself."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def raise_file_limit() -> None:
    """Raise the number of files that this process may open to the hard limit.

    The soft limit is often 1,024. Each session holds several connections: to the log, to a copy, to its upload.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        log.warning("the limit of open files stays as it is", error=str(error))


def open_traces(settings: Settings) -> Traces:
    """Return the exporter of traces. If the settings name no endpoint, the exporter does nothing.

    Raises:
        SettingsError: the settings name an endpoint, but the library is not installed.
    """
    if not settings.traces.endpoint:
        return Traces()
    try:
        # The library is imported only if traces are exported, because it costs memory and start-up time.
        from agent.telemetry.otel import OpenTelemetry
    except ImportError as error:
        missing = f"traces.endpoint: the extra `otel` is not installed (pip install sealci-agent[otel]): {error}"
        raise SettingsError(missing) from error
    return OpenTelemetry(settings.traces, settings.agent, VERSION)


def stop_when_built(built: asyncio.Future[App], why: str) -> None:
    """Ask an agent to stop, now or as soon as `built` has the agent.

    `built` is the future that `serve` gets as `on_start`.
    """
    if built.done():
        built.result().stop(why)
    else:
        built.add_done_callback(lambda built: built.result().stop(why))

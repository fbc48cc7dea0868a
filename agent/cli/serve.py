"""The commands that serve until a signal stops them: `serve` (an agent) and `scheduler` (for one machine).

Heavy modules are imported inside the functions, so that `--help` is instant.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import structlog

from agent.aio import run_in_event_loop
from agent.cli.options import parse_assignments, parse_duration, settings_options, with_local_cluster
from agent.domain.errors import AgentError
from agent.settings import LoggingSettings, Settings, load
from agent.telemetry import log_setup

if TYPE_CHECKING:
    from agent.app.agent import App
    from agent.objects.store import ObjectStore


@click.command()
@settings_options
def serve(config: Path | None, assignments: tuple[str, ...]) -> None:
    """Register with a scheduler and run its actions.

    The first SIGTERM or SIGINT drains the agent. The second cancels the running actions.
    """
    settings = with_local_cluster(load(config, parse_assignments(assignments)))
    log_setup.configure(settings.logging)
    try:
        code = run_in_event_loop(lambda: serve_until_signal(settings))
    except (AgentError, OSError):
        raise
    except Exception as error:
        structlog.get_logger().error("the agent failed", exc_info=error)
        raise
    sys.exit(code)


async def serve_until_signal(settings: Settings) -> int:
    """Run an agent until a signal stops it. Returns the exit code of the process."""
    from agent.app.serve import serve as serve_agent
    from agent.app.serve import stop_when_built
    from agent.app.watchdog import Watchdog

    # Everything loaded so far lives as long as the process. `gc.freeze` excludes these objects from later garbage
    # collections. Without `gc.freeze`, each full collection looks at all of them and stops every session for 50 ms
    # instead of 1 ms.
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    built: asyncio.Future[App] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_when_built, built, signal.Signals(number).name)
    with Watchdog():
        return await serve_agent(settings, built)


@click.command()
@click.option(
    "--listen",
    default="127.0.0.1:7080",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Listen on this address. Port 0 is any free port.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Keep state, logs and files in this folder.",
)
@click.option("--token-file", type=click.Path(path_type=Path), help="Require the bearer token in this file.")
@click.option(
    "--submit-token-file",
    type=click.Path(path_type=Path),
    help="Require the bearer token in this file from people who submit. --token-file is then for agents only.",
)
@click.option(
    "--cert-file", type=click.Path(path_type=Path), help="Certificate of the scheduler. Without it, plaintext."
)
@click.option("--key-file", type=click.Path(path_type=Path), help="Private key of the certificate.")
@click.option(
    "--ca-file", type=click.Path(path_type=Path), help="Require callers' certificates from this CA (mutual TLS)."
)
@click.option(
    "--resume-grace",
    default="60s",
    show_default=True,
    metavar="DURATION",
    help="Time in which an agent may resume the sessions of a lost agent.",
)
@click.option(
    "--objects",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file whose section `objects` names the object store of the agents. Without it, all files come here.",
)
def scheduler(listen: str, folder: Path, resume_grace: str, objects: Path | None, **files: Path | None) -> None:
    """Serve a scheduler for one machine.

    The scheduler queues pipelines, hands actions to agents, and keeps state, logs and files.
    """
    from agent.local_scheduler.local_service import Access
    from agent.local_scheduler.options import SchedulerOptions
    from agent.local_scheduler.server import serve_scheduler

    log_setup.configure(LoggingSettings())
    if files["submit_token_file"] is not None and files["token_file"] is None:
        raise click.UsageError("--submit-token-file needs --token-file, the token of agents")
    store = object_store(load(objects, {})) if objects is not None else None
    options = SchedulerOptions(resume_grace=parse_duration("--resume-grace", resume_grace), objects=store)

    async def serve_until_stopped() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_scheduler(listen, folder, Access(**files), stop, options=options)

    run_in_event_loop(serve_until_stopped)


def object_store(settings: Settings) -> ObjectStore | None:
    """Return the object store of the settings, None if they name none.

    Raises:
        click.UsageError: the settings lack what the scheduler needs to sign URLs.
    """
    from agent.objects.store import ObjectStore

    for name in settings.objects.missing if settings.objects.issuer == "scheduler" else ():
        raise click.UsageError(f"--objects: objects.{name} must be set, because the scheduler signs the URLs")
    return ObjectStore(settings.objects) if settings.objects.issuer != "none" else None

"""The command `sealci-agent`: reads settings, turns signals into wishes, and errors into one sentence and an exit code.

Exit codes: 0 succeeded, 1 the action failed, 2 usage or settings, 3 infrastructure, 4 the scheduler refuses this version,
130 interrupted. Imports of the heavy parts are inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from agent import journal
from agent.errors import AgentError, SettingsError
from agent.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from agent.app import App

USAGE, INFRASTRUCTURE = 2, 3


def main() -> None:
    """Run the command line; every expected failure is one sentence."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as left:
        sys.exit(left.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except SettingsError as error:
        click.echo(f"sealci-agent: {error}", err=True)
        sys.exit(USAGE)
    except (AgentError, OSError) as error:
        click.echo(f"sealci-agent: {error}", err=True)
        sys.exit(INFRASTRUCTURE)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """The SealCI agent: runs each CI action in a Kubernetes pod of its own and leaves nothing behind."""


def configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options with which every setting can be given."""
    command = click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="a setting, as in --set agent.slots=20"
    )(command)
    return click.option(
        "--config", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with settings (SEALCI_CONFIG)"
    )(command)


def flags(assignments: tuple[str, ...], **more: dict[str, Any]) -> dict[str, Any]:
    """Turn `a.b=value` into nested settings; values are read as YAML. Settings in `more` come first."""
    result: dict[str, Any] = {section: dict(values) for section, values in more.items()}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set {assignment}: KEY=VALUE is wanted")
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise click.UsageError(f"--set {assignment}: {section} is no section")
        place[last] = yaml.safe_load(value) if value else ""
    return result


@cli.command()
@configured
def serve(config: Path | None, assignments: tuple[str, ...]) -> None:
    """Register with a scheduler and run its actions, until stopped by SIGTERM."""
    settings = load(config, flags(assignments))
    journal.configure(settings.logging)
    sys.exit(asyncio.run(until_stopped(settings)))


async def until_stopped(settings: Settings) -> int:
    """Serve; the first signal drains, the second cancels."""
    from agent.app import serve as serve_agent

    loop = asyncio.get_running_loop()
    made: asyncio.Future[App] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_when_made, made, signal.Signals(number).name)
    return await serve_agent(settings, made)


def stop_when_made(made: asyncio.Future[App], why: str) -> None:
    """Ask the agent to leave, also when it is only being made."""
    if made.done():
        made.result().stop(why)
    else:
        made.add_done_callback(lambda made: made.result().stop(why))


@asynccontextmanager
async def engine(settings: Settings) -> AsyncIterator[App]:
    """Run an agent beside something else; leaving the block drains it and waits until nothing of it remains."""
    from agent.app import serve as serve_agent

    made: asyncio.Future[App] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_agent(settings, made), name="agent")
    try:
        await asyncio.wait({serving, made}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
            raise AgentError("the agent ended before it began")
        yield made.result()
    finally:
        if made.done() and not serving.done():
            made.result().stop("done")
        await asyncio.wait({serving})


@cli.command()
@configured
def config(config: Path | None, assignments: tuple[str, ...]) -> None:
    """Print the effective settings as YAML."""
    settings = load(config, flags(assignments))
    click.echo(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), nl=False)


@cli.command()
@configured
@click.option("--dry-run", is_flag=True, help="only say what would be deleted")
def cleanup(config: Path | None, assignments: tuple[str, ...], dry_run: bool) -> None:
    """Delete every pod of the pool, whoever owns it: for when no agent of it lives any more."""
    settings = load(config, flags(assignments))
    journal.configure(settings.logging)
    names = asyncio.run(cleaned(settings, dry_run=dry_run))
    for name in names:
        click.echo(f"{'would delete' if dry_run else 'deleted'} {settings.cluster.namespace}/{name}")
    click.echo(f"{len(names)} environments of pool {settings.agent.pool}")


async def cleaned(settings: Settings, *, dry_run: bool) -> list[str]:
    """Clean up and return what was found."""
    from agent.cluster.client import Client
    from agent.cluster.sweep import cleanup as clean
    from agent.metrics import Metrics

    client = await Client.connect(settings.cluster, Metrics())
    try:
        return await clean(client, settings.cluster.namespace, settings.agent.pool, dry_run=dry_run)
    finally:
        await client.close()


@cli.command()
def version() -> None:
    """Print the version."""
    from agent.app import VERSION

    click.echo(VERSION)

"""The command `sealci-agent`: reads settings, turns signals into wishes, errors into one sentence and an exit code.

Exit codes: 0 succeeded, 1 the action failed, 2 usage or settings, 3 infrastructure, 4 the scheduler refuses this
version, 130 interrupted. Imports of the heavy parts are inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from agent import journal
from agent.errors import AgentError, SettingsError
from agent.quantities import seconds
from agent.settings import LoggingSettings, Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.app import App
    from agent.cluster.sweep import Cleaned
    from agent.local.pipeline import Pipeline

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


async def until_set(settings: Settings, stop: asyncio.Event) -> None:
    """Serve beside something else, until `stop` is set and nothing of any session remains.

    Raises:
        AgentError: it could not begin, or ended by itself.
    """
    from agent.app import serve as serve_agent

    made: asyncio.Future[App] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve_agent(settings, made), name="agent")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            stop_when_made(made, "the pipeline has ended")
        await asyncio.wait({serving})
        serving.result()
    finally:
        stopped.cancel()
        serving.cancel()
        await asyncio.wait({serving, stopped})


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--artifacts", type=click.Path(path_type=Path, file_okay=False), help="where logs and files are put")
@click.option("--output", type=click.Choice(["auto", "plain", "json"]), default="auto", show_default=True)
@click.option("--context", default="", help="context of the kubeconfig")
@click.option("--namespace", default="", help="namespace to run in")
@click.option("--timeout", default="", metavar="DURATION", help="for the whole pipeline, as in 10m")
@click.option("--secrets-file", type=click.Path(path_type=Path), help="NAME=VALUE lines for the pipeline's secrets")
@click.option("--verbose", "-v", is_flag=True, help="show the agent's own log")
@configured
def run(file: Path, artifacts: Path | None, output: str, timeout: str, secrets_file: Path | None, **more: Any) -> None:
    """Run a pipeline FILE on the current Kubernetes context: the same engine, a scheduler in memory.

    \b
    Exit codes: 0 succeeded, 1 an action failed, 2 usage, 3 infrastructure, 130 interrupted.
    """
    from agent.local.run import Endpoint, Patience, run_pipeline

    pipeline, secrets = read_pipeline(file, secrets_file)
    settings = run_settings(**more)
    journal.configure(settings.logging)

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        scheduler = {"address": endpoint.address, "token_file": endpoint.token_file, "protocol": "stream"}
        own = settings.scheduler.model_copy(
            update={**scheduler, "tls": settings.scheduler.tls.model_copy(update=PLAIN)}
        )
        await until_set(settings.model_copy(update={"scheduler": own}), stop)

    patience = Patience(timeout=duration("--timeout", timeout) if timeout else None)
    work = run_pipeline(pipeline, engine=engine, secrets=secrets, artifacts=artifacts, output=output, patience=patience)
    sys.exit(asyncio.run(work))


PLAIN = {"enabled": False}


def run_settings(
    context: str, namespace: str, verbose: bool, config: Path | None, assignments: tuple[str, ...]
) -> Settings:
    """Return the settings of a run: a pool of its own, no port that could be taken, a quiet log."""
    import secrets

    cluster = {key: value for key, value in (("context", context), ("namespace", namespace)) if value}
    return load(
        config,
        flags(
            assignments,
            cluster=cluster,
            agent={"pool": f"run-{secrets.token_hex(4)}", "adoption": False},
            http={"host": "127.0.0.1", "port": 0},
            logging={"level": "info" if verbose else "error"},
        ),
    )


def read_pipeline(file: Path, secrets_file: Path | None) -> tuple[Pipeline, dict[str, str]]:
    """Read a pipeline file and the values of the secrets that it names."""
    from agent.local.document import FileWrong
    from agent.local.pipeline import load as load_pipeline
    from agent.local.secrets import SecretMissing, find_secrets

    try:
        pipeline = load_pipeline(file)
        return pipeline, find_secrets(pipeline.secrets, os.environ, secrets_file)
    except (FileWrong, SecretMissing, OSError) as error:
        raise SettingsError(str(error)) from error


def duration(option: str, text: str) -> float:
    """Read a duration given as an option."""
    try:
        return seconds(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from error


@cli.command()
@click.option("--listen", default="127.0.0.1:7080", show_default=True, help="address:port; port 0 is any free one")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="keeps state, logs and files"
)
@click.option("--token-file", type=click.Path(path_type=Path), help="bearer token that callers must bring")
@click.option("--cert-file", type=click.Path(path_type=Path), help="certificate; without it, plaintext")
@click.option("--key-file", type=click.Path(path_type=Path), help="key of the certificate")
@click.option("--ca-file", type=click.Path(path_type=Path), help="CA of the callers' certificates (mTLS)")
@click.option("--resume-grace", default="60s", show_default=True, help="how long sessions of a lost agent wait for it")
def scheduler(listen: str, folder: Path, resume_grace: str, **files: Path | None) -> None:
    """Serve a scheduler for one machine: queues pipelines, hands actions to agents, keeps logs and files."""
    from agent.local.dispatch import Rules
    from agent.local.scheduler import serve_scheduler
    from agent.local.server import Access

    journal.configure(LoggingSettings())
    rules = Rules(resume_grace=duration("--resume-grace", resume_grace))

    async def serve_until_stopped() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_scheduler(listen, folder, Access(**files), stop, rules=rules)

    asyncio.run(serve_until_stopped())


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--scheduler", "address", default="localhost:7080", show_default=True, help="host:port")
@click.option("--output", type=click.Choice(["auto", "plain", "json"]), default="auto", show_default=True)
@click.option("--token-file", type=click.Path(path_type=Path), help="bearer token")
@click.option("--plaintext", is_flag=True, help="no TLS: for a scheduler on this machine")
@click.option("--ca-file", type=click.Path(path_type=Path), help="CA of the scheduler; without it, the system's")
@click.option("--cert-file", type=click.Path(path_type=Path), help="own certificate (mTLS)")
@click.option("--key-file", type=click.Path(path_type=Path), help="key of the own certificate")
@click.option("--server-name", default="", help="name that the scheduler's certificate carries, if not its address")
@click.option("--secrets-file", type=click.Path(path_type=Path), help="NAME=VALUE lines for the pipeline's secrets")
def submit(
    file: Path,
    address: str,
    output: str,
    plaintext: bool,
    secrets_file: Path | None,
    **trust: Any,
) -> None:
    """Submit a pipeline FILE to a scheduler started with `sealci-agent scheduler`, and show it to its end."""
    from agent.local.submit import Target
    from agent.local.submit import submit as submit_pipeline

    pipeline, secrets = read_pipeline(file, secrets_file)
    target = Target(address, tls=not plaintext, **trust)
    sys.exit(asyncio.run(submit_pipeline(target, pipeline, secrets=secrets, output=output)))


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
    """Delete every pod of the pool, whoever owns it, and its stale Leases: for when no agent of it lives any more."""
    settings = load(config, flags(assignments))
    journal.configure(settings.logging)
    found = asyncio.run(cleaned(settings, dry_run=dry_run))
    said = "would delete" if dry_run else "deleted"
    for kind, names in (("", found.pods), ("Lease ", found.leases)):
        for name in names:
            click.echo(f"{said} {kind}{settings.cluster.namespace}/{name}")
    for name, why in found.failed.items():
        click.echo(f"could not delete {settings.cluster.namespace}/{name}: {why}", err=True)
    click.echo(f"{len(found.pods)} environments of pool {settings.agent.pool}")
    if found.failed:
        sys.exit(INFRASTRUCTURE)


async def cleaned(settings: Settings, *, dry_run: bool) -> Cleaned:
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
@configured
@click.option("--output", type=click.Choice(["plain", "json"]), default="plain", show_default=True)
@click.option("--only", type=click.Choice(["cluster", "scheduler"]), help="examine only this side")
@click.option("--image", default="", help="image that the probe runs; none: the agent's own")
@click.option("--timeout", default="2m", show_default=True, metavar="DURATION", help="for the probe's pod to run")
def doctor(
    config: Path | None, assignments: tuple[str, ...], output: str, only: str | None, image: str, timeout: str
) -> None:
    """Try everything that the agent needs: rights, scheduler, TLS, quota, clock, and a probe pod from start to end.

    \b
    One line per check, with what to do when it fails. Exit codes: 0 nothing failed, 1 something did.
    """
    from agent.doctor import PARTS, examine, report

    settings = load(config, flags(assignments))
    journal.configure(settings.logging.model_copy(update={"level": "error"}))
    parts = (only,) if only else PARTS
    findings = examine(settings, parts=parts, image=image, seconds=duration("--timeout", timeout))
    sys.exit(0 if asyncio.run(report(findings, say=click.echo, as_json=output == "json")) else 1)


@cli.command()
def version() -> None:
    """Print the version."""
    from agent.app import VERSION

    click.echo(VERSION)

"""The command `sealci-agent`: reads settings, turns signals into wishes, errors into one sentence and an exit code.

Exit codes: 0 succeeded, 1 the action failed, 2 usage or settings, 3 infrastructure, 4 the scheduler refuses this
version, 130 interrupted. Imports of the heavy parts are inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from agent.cli.options import configured, duration, flags, read_pipeline
from agent.cli.run import run
from agent.domain.errors import AgentError, SettingsError
from agent.settings import LoggingSettings, Settings, load
from agent.telemetry import log_setup

if TYPE_CHECKING:
    from agent.app.agent import App
    from agent.cluster.ownership.orphans import CleanupResult

USAGE, INFRASTRUCTURE = 2, 3
NAME, COMPLETE = "sealci-agent", "_SEALCI_AGENT_COMPLETE"


def main() -> None:
    """Run the command line; every expected failure is one sentence."""
    try:
        cli(standalone_mode=False, prog_name=NAME, complete_var=COMPLETE)
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


cli.add_command(run)


@cli.command()
@configured
def serve(config: Path | None, assignments: tuple[str, ...]) -> None:
    """Register with a scheduler and run its actions, until stopped by SIGTERM."""
    settings = load(config, flags(assignments))
    log_setup.configure(settings.logging)
    sys.exit(asyncio.run(until_stopped(settings)))


async def until_stopped(settings: Settings) -> int:
    """Serve; the first signal drains, the second cancels."""
    from agent.app.serve import serve as serve_agent
    from agent.app.serve import stop_when_built
    from agent.app.watchdog import Watchdog

    # All that is loaded now lives as long as the process: a collection of garbage that looked at it again would hold
    # every session for as long (50 ms against 1).
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    made: asyncio.Future[App] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_when_built, made, signal.Signals(number).name)
    with Watchdog():
        return await serve_agent(settings, made)


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
    from agent.local_scheduler.dispatcher import Rules
    from agent.local_scheduler.grpc_service import Access
    from agent.local_scheduler.server import serve_scheduler

    log_setup.configure(LoggingSettings())
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
    from agent.cli.submit import Target
    from agent.cli.submit import submit as submit_pipeline

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
    log_setup.configure(settings.logging)
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


async def cleaned(settings: Settings, *, dry_run: bool) -> CleanupResult:
    """Clean up and return what was found."""
    from agent.cluster.api.client import Client
    from agent.cluster.ownership.orphans import cleanup as clean
    from agent.telemetry.metrics import Metrics

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
    from agent.app.doctor import PARTS, examine, report

    settings = load(config, flags(assignments))
    log_setup.configure(settings.logging.model_copy(update={"level": "error"}))
    parts = (only,) if only else PARTS
    findings = examine(settings, parts=parts, image=image, seconds=duration("--timeout", timeout))
    sys.exit(0 if asyncio.run(report(findings, write=click.echo, as_json=output == "json")) else 1)


@cli.command()
def version() -> None:
    """Print the version."""
    from agent.app.agent import VERSION

    click.echo(VERSION)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a SHELL complete commands, options and names of actions.

    \b
    bash:  source <(sealci-agent completion bash)       in ~/.bashrc
    zsh:   source <(sealci-agent completion zsh)        in ~/.zshrc
    fish:  sealci-agent completion fish | source        in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"there is no completion for {shell}")
    click.echo(made(cli, {}, NAME, COMPLETE).source())

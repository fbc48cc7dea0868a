"""The command `sealci-agent`: the group of all commands, and the short commands themselves.

`main` turns every expected error into one sentence and an exit code. Heavy modules are imported inside the commands, so
that `--help` is instant.

Exit codes: 0 succeeded, 1 the action failed, 2 usage or settings, 3 infrastructure, 4 the scheduler refuses this
version, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from agent.aio import run_in_event_loop
from agent.cli.conformance import conformance
from agent.cli.options import (
    check_reports,
    output_options,
    parse_assignments,
    parse_duration,
    parse_size,
    print_error,
    read_pipeline,
    settings_options,
    target_options,
    with_local_cluster,
)
from agent.cli.pipeline_file import init, lint, schema
from agent.cli.run import run
from agent.cli.serve import scheduler, serve
from agent.domain.errors import AgentError, SettingsError
from agent.settings import Settings, load
from agent.telemetry import log_setup

if TYPE_CHECKING:
    from agent.cluster.ownership.orphans import CleanupResult

USAGE, INFRASTRUCTURE, INTERRUPTED = 2, 3, 130
NAME, COMPLETE = "sealci-agent", "_SEALCI_AGENT_COMPLETE"


def main() -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal in another encoding than UTF-8 cannot show every character. Such a character must not end a
        # pipeline with an error.
        sys.stdout.reconfigure(errors="replace")
    try:
        cli(standalone_mode=False, prog_name=NAME, complete_var=COMPLETE)
    except click.exceptions.Exit as early_exit:
        sys.exit(early_exit.exit_code)
    except click.Abort:
        with contextlib.suppress(OSError):
            print_error("interrupted")
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except SettingsError as error:
        print_error(str(error))
        sys.exit(USAGE)
    except (AgentError, OSError) as error:
        print_error(str(error))
        sys.exit(INFRASTRUCTURE)
    except Exception as error:  # noqa: BLE001 - whatever fails ends the process with one message and an exit code
        print_error(f"internal error, please report it: {described(error)}")
        sys.exit(INFRASTRUCTURE)


def described(error: BaseException) -> str:
    """Return the type, the message and the place of an error. For a group of errors, describe its first error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name=NAME, message="%(version)s")
def cli() -> None:
    """Run each CI action in a Kubernetes pod of its own, and leave nothing behind."""


cli.add_command(conformance)
cli.add_command(init)
cli.add_command(lint)
cli.add_command(schema)
cli.add_command(serve)
cli.add_command(run)
cli.add_command(scheduler)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@target_options
@output_options
@click.option(
    "--secrets-file", type=click.Path(path_type=Path), help="Read values of secrets from NAME=VALUE lines in this file."
)
@click.option(
    "--artifacts",
    type=click.Path(path_type=Path, file_okay=False),
    help="Copy logs and files into this folder when the pipeline has ended.",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a summary: JUnit (.xml) or Markdown (.md). May be given several times.",
)
def submit(
    file: Path,
    address: str,
    output: str,
    timestamps: bool,
    plaintext: bool,
    secrets_file: Path | None,
    reports: tuple[Path, ...],
    artifacts: Path | None,
    **trust: Any,
) -> None:
    """Submit a pipeline FILE to a scheduler that `sealci-agent scheduler` started, and show it to its end."""
    from agent.cli.submit import Target
    from agent.cli.submit import submit as submit_pipeline

    check_reports(reports)
    pipeline, secrets = read_pipeline(file, secrets_file)
    target = Target(address, tls=not plaintext, **trust)
    shown: dict[str, Any] = {"output": output, "timestamps": timestamps, "reports": reports, "artifacts": artifacts}
    sys.exit(run_in_event_loop(lambda: submit_pipeline(target, pipeline, secrets=secrets, **shown)))


@cli.command()
@target_options
def pipelines(address: str, plaintext: bool, **trust: Any) -> None:
    """List the pipelines of a scheduler that `sealci-agent scheduler` started, oldest first.

    \b
    Prints one line per pipeline: id, state, actions that ended, time of the submission, name of the file.
    """
    from agent.cli.submit import Target, list_pipelines

    for line in run_in_event_loop(lambda: list_pipelines(Target(address, tls=not plaintext, **trust))):
        click.echo(line)


@cli.command()
@click.argument("pipeline")
@target_options
def cancel(pipeline: str, address: str, plaintext: bool, **trust: Any) -> None:
    """Cancel every action of a PIPELINE of a scheduler. `sealci-agent pipelines` prints the ids."""
    from agent.cli.submit import Target, cancel_pipeline

    run_in_event_loop(lambda: cancel_pipeline(Target(address, tls=not plaintext, **trust), pipeline))
    click.echo(f"pipeline {pipeline} is being cancelled")


@cli.command()
@settings_options
def config(config: Path | None, assignments: tuple[str, ...]) -> None:
    """Print the settings in force as YAML."""
    settings = load(config, parse_assignments(assignments))
    click.echo(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), nl=False)


@cli.command()
@settings_options
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and delete nothing.")
@click.option("--runs", is_flag=True, help="Delete only what killed runs of this machine left, not the pool.")
def cleanup(config: Path | None, assignments: tuple[str, ...], dry_run: bool, runs: bool) -> None:
    """Delete every pod of the pool, whichever agent owns it, and the pool's stale Leases.

    Use this command only if no agent of the pool runs any more. It also deletes what each `sealci-agent run` left
    that was killed on this machine. With --runs it deletes nothing else, so it is safe at any time.
    """
    settings = with_local_cluster(load(config, parse_assignments(assignments)))
    log_setup.configure(settings.logging)
    results = run_in_event_loop(lambda: delete_pools(settings, dry_run=dry_run, pool=not runs))
    for namespace, pool, result in results:
        print_cleanup(namespace, pool, result, verb="would delete" if dry_run else "deleted")
    if runs and not results:
        click.echo("no killed run of this machine left anything")
    if any(result.failed for _, _, result in results):
        sys.exit(INFRASTRUCTURE)


def print_cleanup(namespace: str, pool: str, result: CleanupResult, *, verb: str) -> None:
    """Print the names of the objects of one pool that were deleted, and their number."""
    for kind, names in (("", result.pods), ("Lease ", result.leases)):
        for name in names:
            click.echo(f"{verb} {kind}{namespace}/{name}")
    for name, why in result.failed.items():
        click.echo(f"could not delete {namespace}/{name}: {why}", err=True)
    click.echo(f"{len(result.pods)} environments of pool {pool}")


async def delete_pools(settings: Settings, *, dry_run: bool, pool: bool) -> list[tuple[str, str, CleanupResult]]:
    """Delete what killed runs left, and with `pool` the pods and stale Leases of the pool of the settings.

    Returns for each pool the namespace, the name of the pool, and what was deleted (with `dry_run`: what would be
    deleted).
    """
    from agent.cli.killed_runs import delete_killed_runs
    from agent.cluster.api.client import Client
    from agent.cluster.ownership.orphans import cleanup as clean
    from agent.telemetry.metrics import Metrics

    results = []
    client = await Client.connect(settings.cluster, Metrics())
    try:
        async for run_pool, result in delete_killed_runs(client, dry_run=dry_run):
            results.append((run_pool.namespace, run_pool.name, result))
        if pool:
            namespace, name = settings.cluster.namespace, settings.agent.pool
            results.append((namespace, name, await clean(client, namespace, name, dry_run=dry_run)))
        return results
    finally:
        await client.close()


@cli.command()
@settings_options
@click.option(
    "--output",
    type=click.Choice(["plain", "json"]),
    default="plain",
    show_default=True,
    help="Print one line per check, or one JSON object per line.",
)
@click.option("--only", type=click.Choice(["cluster", "objects", "scheduler"]), help="Check only this side.")
@click.option("--image", default="", help="Image of the probe pod. Default: the agent's own image.")
@click.option(
    "--timeout", default="2m", show_default=True, metavar="DURATION", help="Longest time for the probe pod to run."
)
def doctor(
    config: Path | None, assignments: tuple[str, ...], output: str, only: str | None, image: str, timeout: str
) -> None:
    """Check everything that the agent needs: rights, scheduler, TLS, quota, clock and a probe pod.

    \b
    Prints one line per check, with what to do if the check failed.
    Exit codes: 0 no check failed, 1 a check failed.
    """
    from agent.app.doctor import PARTS, examine
    from agent.console.reports.check_report import report

    settings = load(config, parse_assignments(assignments))
    settings = with_local_cluster(settings) if only in (None, "cluster") else settings
    log_setup.configure(settings.logging.model_copy(update={"level": "error"}))
    parts = (only,) if only else PARTS
    findings = examine(settings, parts=parts, image=image, seconds=parse_duration("--timeout", timeout))
    sys.exit(0 if run_in_event_loop(lambda: report(findings, write=click.echo, as_json=output == "json")) else 1)


@cli.group()
def cache() -> None:
    """Look after the cache in the object store, or on a volume."""


@cache.command()
@settings_options
@click.option("--older-than", metavar="DURATION", help="Delete entries that were stored before this time, as in 30d.")
@click.option("--max-bytes", metavar="SIZE", help="Delete the oldest entries until the rest fits, as in 100Gi.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder in which the volume of caches is mounted. No settings are read.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and delete nothing.")
def prune(
    config: Path | None,
    assignments: tuple[str, ...],
    older_than: str | None,
    max_bytes: str | None,
    folder: Path | None,
    dry_run: bool,
) -> None:
    """Delete old entries of the cache, and archives that no entry names.

    Without an option, only archives without an entry are deleted. The settings name the store and the key.
    """
    from agent.console.formatting import size_text
    from agent.objects.prune import prune_store
    from agent.objects.prune_folder import prune_folder

    seconds = parse_duration("--older-than", older_than) if older_than else None
    limit = parse_size("--max-bytes", max_bytes) if max_bytes else None
    if folder is not None:
        done = prune_folder(folder, older_than=seconds, max_bytes=limit, dry_run=dry_run)
    else:
        settings = load(config, parse_assignments(assignments))
        done = run_in_event_loop(lambda: prune_store(settings, older_than=seconds, max_bytes=limit, dry_run=dry_run))
    verb = "would delete" if dry_run else "deleted"
    click.echo(f"{verb} {done.entries} entries and {done.archives} archives ({size_text(done.bytes)})")
    click.echo(f"{done.kept_entries} entries and {size_text(done.kept_bytes)} stay")
    if done.cut:
        click.echo("there are more files than were listed, so run this again")


@cli.command()
def version() -> None:
    """Print the version."""
    from agent.app.agent import VERSION

    click.echo(VERSION)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that lets SHELL complete commands, options and names of actions.

    \b
    bash:  source <(sealci-agent completion bash)       in ~/.bashrc
    zsh:   source <(sealci-agent completion zsh)        in ~/.zshrc
    fish:  sealci-agent completion fish | source        in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"there is no completion for {shell}")
    click.echo(script(cli, {}, NAME, COMPLETE).source())

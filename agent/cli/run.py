"""The command `run`: its options, and the agent that it starts beside a scheduler in memory.

Lives as long as one invocation; with `--watch` it runs the file again whenever that changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import configured, duration, flags, read_pipeline
from agent.domain.errors import AgentError, SettingsError
from agent.settings import Settings, load
from agent.telemetry import log_setup

if TYPE_CHECKING:
    from agent.app.agent import App
    from agent.cli.run_pipeline import Endpoint, Wishes
    from agent.cluster.environment.debugging import DebugOptions
    from agent.console.run_report import ExitCode
    from agent.pipeline.parser import Pipeline

USAGE, INTERRUPTED = 2, 130
PLAIN = {"enabled": False}
LOOK = 0.3
NO_CLUSTER = "; get one with `kind create cluster` (or `make cluster-up` in a checkout of this repository)"
HELP = """Run a pipeline FILE on the current Kubernetes context: the same engine, a scheduler in memory.

\b
Examples:
  sealci-agent run pipeline.yaml                        run it, and watch
  sealci-agent run pipeline.yaml --artifacts out        keep logs and files in the folder out
  sealci-agent run pipeline.yaml --repo .               on this working tree, uncommitted changes included
  sealci-agent run pipeline.yaml --list                 which actions are there?
  sealci-agent run pipeline.yaml --only test --watch    one action, again whenever the file changes
  sealci-agent run pipeline.yaml --env COLOUR=blue --secret TOKEN
  sealci-agent run pipeline.yaml --shell-on-failure     a failure opens a shell in its workspace
  sealci-agent run pipeline.yaml --output plain --report junit.xml --report summary.md    in a CI system

\b
A pipeline:
  name: hello
  actions:
    build:
      configuration: {container: "debian:stable"}
      commands: [echo hello]
    test:
      needs: [build]
      configuration: {container: "debian:stable"}
      commands: ["test -e /etc/debian_version"]

\b
Exit codes: 0 succeeded, 1 an action failed, 2 usage, 3 infrastructure, 130 interrupted (after cleaning).
"""


@dataclass(frozen=True, slots=True)
class Choices:
    """What was given on the command line."""

    file: Path
    artifacts: Path | None
    output: str
    quiet: bool
    only: tuple[str, ...]
    listing: bool
    keep: bool
    shell: bool
    watch: bool
    env: tuple[str, ...]
    secret: tuple[str, ...]
    secrets_file: Path | None
    repo: Path | None
    reports: tuple[Path, ...]
    timeout: str
    context: str
    namespace: str
    verbose: bool
    config: Path | None
    assignments: tuple[str, ...]


def names_of_actions(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of an action of the file that stands on the command line already."""
    from agent.pipeline.parser import load as load_pipeline

    # An option whose value is being typed keeps click from reading the line; the shell hands all of it over.
    words = os.environ.get("COMP_WORDS", "").split()
    names: list[str] = []
    for file in (Path(word) for word in words[2:] if Path(word).is_file()):
        with contextlib.suppress(AgentError):
            names += [each.name for each in load_pipeline(file).actions if each.name.startswith(incomplete)]
    return names


@click.command(help=HELP, short_help="Run a pipeline FILE on the current Kubernetes context.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--only", multiple=True, metavar="NAME", shell_complete=names_of_actions, help="this action alone")
@click.option("--list", "listing", is_flag=True, help="show the actions and run none")
@click.option(
    "--repo",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PATH",
    help="the working tree at PATH is the workspace, in place of `repo`; what git ignores stays out",
)
@click.option("--env", multiple=True, metavar="K=V", help="a variable for every action")
@click.option("--secret", multiple=True, metavar="NAME", help="a secret for every action, from the environment")
@click.option("--secrets-file", type=click.Path(path_type=Path), help="NAME=VALUE lines for the pipeline's secrets")
@click.option("--artifacts", type=click.Path(path_type=Path, file_okay=False), help="where logs and files are put")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="a summary: JUnit (.xml) or Markdown (.md)",
)
@click.option(
    "--output",
    type=click.Choice(["auto", "plain", "json"]),
    default="auto",
    show_default=True,
    help="auto is live on a terminal, else plain",
)
@click.option("--quiet", "-q", is_flag=True, help="nothing, unless something fails")
@click.option("--watch", is_flag=True, help="run again whenever FILE changes")
@click.option("--keep", is_flag=True, help="leave the environments, and say how to look into them")
@click.option("--shell-on-failure", "shell", is_flag=True, help="open a shell in the workspace of what failed")
@click.option("--timeout", default="", metavar="DURATION", help="for the whole pipeline, as in 10m")
@click.option("--context", default="", help="context of the kubeconfig")
@click.option("--namespace", default="", help="namespace to run in")
@click.option("--verbose", "-v", is_flag=True, help="show the agent's own log")
@configured
def run(**given: Any) -> None:
    """Run a pipeline; `HELP` is what is shown."""
    choices = Choices(**given)
    check(choices)
    if choices.listing:
        show_list(choices)
        return
    settings = run_settings(choices)
    log_setup.configure(settings.logging)
    sys.exit(again(choices, settings) if choices.watch else once(choices, settings))


def check(choices: Choices) -> None:
    """Refuse what cannot be done, before anything is started."""
    from agent.console import report_files

    if choices.shell and not (sys.stdin.isatty() and sys.stdout.isatty() and choices.output != "json"):
        raise click.UsageError("--shell-on-failure: needs a terminal")
    for file in choices.reports:
        try:
            report_files.form(file)
        except ValueError as error:
            raise click.UsageError(f"--report: {error}") from error


def show_list(choices: Choices) -> None:
    """Print the actions."""
    from rich.console import Console

    from agent.console.listing import listing

    Console(highlight=False, emoji=False, soft_wrap=True).print(listing(changed(choices)[0]))


def changed(choices: Choices) -> tuple[Pipeline, dict[str, str]]:
    """Read the pipeline as the options want it, with the values of its secrets unless it is only listed."""
    from agent.pipeline import overrides

    env = dict(assignment.partition("=")[::2] for assignment in choices.env)
    if wrong := [each for each in choices.env if "=" not in each]:
        raise click.UsageError(f"--env {wrong[0]}: K=V is wanted")

    def change(pipeline: Pipeline) -> Pipeline:
        pipeline = overrides.only(pipeline, choices.only) if choices.only else pipeline
        pipeline = overrides.with_env(pipeline, env)
        pipeline = overrides.with_secrets(pipeline, choices.secret)
        return overrides.with_tree(pipeline) if choices.repo else pipeline

    if choices.listing:
        return read_pipeline(choices.file, None, lambda each: overrides.unsecret(change(each)))
    return read_pipeline(choices.file, choices.secrets_file, change)


def run_settings(choices: Choices) -> Settings:
    """Return the settings of a run: a pool of its own, no port that could be taken, a quiet log."""
    import secrets

    given = (("context", choices.context), ("namespace", choices.namespace))
    return load(
        choices.config,
        flags(
            choices.assignments,
            cluster={key: value for key, value in given if value},
            agent={"pool": f"run-{secrets.token_hex(4)}", "adoption": False},
            http={"host": "127.0.0.1", "port": 0},
            logging={"level": "info" if choices.verbose else "error"},
        ),
    )


def again(choices: Choices, settings: Settings) -> int:
    """Run whenever the file changes, until interrupted."""
    while True:
        before = trace(choices.file)
        try:
            code = once(choices, settings)
        except (SettingsError, click.UsageError) as error:
            click.echo(f"sealci-agent: {error}", err=True)
            code = USAGE
        if code == INTERRUPTED:
            return code
        click.echo(f"watching {choices.file}: it is run again when it changes (Ctrl-C ends)", err=True)
        try:
            until_changed(choices.file, before)
        except KeyboardInterrupt:
            return INTERRUPTED


def until_changed(file: Path, before: tuple[int, ...]) -> None:
    """Wait until a file is another one; editors replace files, so that there is nothing but to look."""
    while trace(file) == before:
        time.sleep(LOOK)


def trace(file: Path) -> tuple[int, ...]:
    """Return what tells a file that was changed; nothing while it is missing."""
    try:
        facts = file.stat()
    except OSError:
        return ()
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def once(choices: Choices, settings: Settings) -> int:
    """Run the pipeline as it is now; returns the exit code."""
    from agent.cli import working_tree

    pipeline, secrets = changed(choices)
    with tempfile.TemporaryDirectory(prefix="sealci-tree-") as folder:
        packed = None
        if choices.repo is not None:
            packed = Path(folder) / "tree.tar"
            try:
                working_tree.pack(choices.repo, packed)
            except working_tree.TreeWrong as error:
                raise SettingsError(str(error)) from error
        return asyncio.run(piped(choices, settings, pipeline, secrets, packed))


async def piped(
    choices: Choices, settings: Settings, pipeline: Pipeline, secrets: dict[str, str], packed: Path | None
) -> ExitCode:
    """Run the pipeline with an agent of its own."""
    from agent.cli.run_pipeline import Patience, run_pipeline
    from agent.cluster.environment.debugging import DebugOptions

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        scheduler = {"address": endpoint.address, "token_file": endpoint.token_file, "protocol": "stream"}
        tls = settings.scheduler.tls.model_copy(update=PLAIN)
        own = settings.scheduler.model_copy(update={**scheduler, "tls": tls})
        bench = DebugOptions(endpoint.screen, tree=packed, keep=choices.keep, shell=choices.shell)
        await until_set(settings.model_copy(update={"scheduler": own}), stop, bench)

    patience = Patience(timeout=duration("--timeout", choices.timeout) if choices.timeout else None)
    return await run_pipeline(
        pipeline, engine=engine, secrets=secrets, wishes=wishes(choices, settings), patience=patience
    )


def wishes(choices: Choices, settings: Settings) -> Wishes:
    """Return what the person wants to see, and what is said of what stays in the cluster."""
    from agent.cli.run_pipeline import Wishes

    where = [f"--context={choices.context}"] if choices.context else []

    def kept(environment: str) -> list[str]:
        namespace, _, pod = environment.partition("/")
        kubectl = shlex.join(["kubectl", *where, "-n", namespace])
        return [
            f"{kubectl} logs {pod} -c action",
            f"{kubectl} describe pod {pod}",
            f"{kubectl} exec -it {pod} -c files -- sh -c 'cd {settings.environment.workspace}; exec bash'",
            f"{kubectl} delete pod {pod}",
        ]

    cleanup = ["sealci-agent", "cleanup", "--set", f"agent.pool={settings.agent.pool}"]
    cleanup += ["--set", f"cluster.namespace={settings.cluster.namespace}"]
    cleanup += ["--set", f"cluster.context={choices.context}"] if choices.context else []
    return Wishes(
        artifacts=choices.artifacts,
        output=choices.output,
        quiet=choices.quiet,
        reports=choices.reports,
        kept=kept if choices.keep else None,
        cleanup=shlex.join(cleanup),
        no_cluster=NO_CLUSTER,
    )


async def until_set(settings: Settings, stop: asyncio.Event, bench: DebugOptions) -> None:
    """Serve beside something else, until `stop` is set and nothing of any session remains.

    Raises:
        AgentError: it could not begin, or ended by itself.
    """
    from agent.app.serve import serve, stop_when_built

    made: asyncio.Future[App] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(settings, made, bench), name="agent")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            stop_when_built(made, "the pipeline has ended")
        await asyncio.wait({serving})
        serving.result()
    finally:
        stopped.cancel()
        serving.cancel()
        await asyncio.wait({serving, stopped})

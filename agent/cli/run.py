"""The command `run`: its options, and what they change in the pipeline and the settings.

The objects live as long as the command. With `--watch`, the command runs the file again whenever the file changes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from agent.aio import run_in_event_loop
from agent.cli.options import (
    check_policy,
    check_reports,
    complete_context,
    complete_namespace,
    output_options,
    parse_assignments,
    read_pipeline,
    settings_options,
    with_local_cluster,
)
from agent.domain.errors import AgentError, SettingsError
from agent.settings import Settings, load
from agent.telemetry import log_setup

if TYPE_CHECKING:
    from agent.pipeline.parser import Pipeline

USAGE, INTERRUPTED = 2, 130
HELP = """Run a pipeline FILE on the current Kubernetes context, without a scheduler of your own.

\b
Examples:
  sealci-agent run pipeline.yaml                        run the pipeline, and show it
  sealci-agent run pipeline.yaml --artifacts out        keep logs and files in the folder out
  sealci-agent run pipeline.yaml --repo .               use this working tree, with uncommitted changes
  sealci-agent run pipeline.yaml --list                 print the actions
  sealci-agent run pipeline.yaml --only test --watch    run one action, and again whenever the file changes
  sealci-agent run pipeline.yaml --env COLOUR=blue --secret TOKEN
  sealci-agent run pipeline.yaml --shell-on-failure     open a shell in the workspace after a failure
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
Exit codes: 0 succeeded, 1 an action failed, 2 usage, 3 infrastructure, 130 interrupted (after clean-up).
"""


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of one `run`, as given on the command line."""

    file: Path
    artifacts: Path | None
    output: str
    timestamps: bool
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
    """Complete the name of an action in the shell. The pipeline file is already named on the command line."""
    from agent.pipeline.parser import load as load_pipeline

    # click does not parse the arguments while the value of an option is typed. The shell passes the whole line in
    # `COMP_WORDS`.
    words = os.environ.get("COMP_WORDS", "").split()
    names: list[str] = []
    for file in (Path(word) for word in words[2:] if Path(word).is_file()):
        with contextlib.suppress(AgentError):
            names += [each.name for each in load_pipeline(file).actions if each.name.startswith(incomplete)]
    return names


@click.command(help=HELP, short_help="Run a pipeline FILE on the current Kubernetes context.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    shell_complete=names_of_actions,
    help="Run this action alone, without the actions that it needs. May be given several times.",
)
@click.option("--list", "listing", is_flag=True, help="Print the actions as a tree and run none.")
@click.option(
    "--repo",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PATH",
    help="Use the working tree at PATH as the workspace, in place of `repo`. Ignored files are left out.",
)
@click.option(
    "--env",
    multiple=True,
    metavar="K=V",
    help="Set a variable for every action, over the file's. May be given several times.",
)
@click.option(
    "--secret",
    multiple=True,
    metavar="NAME",
    help="Give every action this secret. Its value comes from the environment or the secrets file.",
)
@click.option(
    "--secrets-file",
    type=click.Path(path_type=Path),
    help="Read values of secrets from NAME=VALUE lines in this file.",
)
@click.option(
    "--artifacts",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep logs and files in this folder.",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a summary: JUnit (.xml) or Markdown (.md). May be given several times.",
)
@output_options
@click.option("--quiet", "-q", is_flag=True, help="Print nothing, unless something fails.")
@click.option("--watch", is_flag=True, help="Run again whenever FILE, or the tree of --repo, changes, until Ctrl-C.")
@click.option(
    "--keep",
    is_flag=True,
    help="Leave the environments in the cluster, and print the commands to look into them.",
)
@click.option(
    "--shell-on-failure",
    "shell",
    is_flag=True,
    help="Open a shell in the workspace and the image of an action that failed.",
)
@click.option(
    "--timeout",
    default="",
    metavar="DURATION",
    help="Cancel the whole pipeline after this time, as in 10m.",
)
@click.option(
    "--context",
    default="",
    shell_complete=complete_context,
    help="Context of the kubeconfig. Default: the current one.",
)
@click.option("--namespace", default="", shell_complete=complete_namespace, help="Namespace of the pods.")
@click.option("--verbose", "-v", is_flag=True, help="Show the agent's own log.")
@settings_options
def run(**given: Any) -> None:
    """Run a pipeline. The text of `--help` is `HELP`."""
    choices = Choices(**given)
    check_choices(choices)
    if choices.listing:
        show_list(choices)
        return
    settings = run_settings(choices)
    log_setup.configure(settings.logging)
    sys.exit(run_on_changes(choices, settings) if choices.watch else run_once(choices, settings))


def check_choices(choices: Choices) -> None:
    """Refuse options that cannot work, before anything starts."""
    if choices.shell and not (sys.stdin.isatty() and sys.stdout.isatty() and choices.output != "json"):
        raise click.UsageError("--shell-on-failure needs a terminal")
    check_reports(choices.reports)


def show_list(choices: Choices) -> None:
    """Print the actions as a tree."""
    from rich.console import Console

    from agent.console.listing import listing

    Console(highlight=False, emoji=False, soft_wrap=True).print(listing(read_changed_pipeline(choices)[0]))


def read_changed_pipeline(choices: Choices) -> tuple[Pipeline, dict[str, str]]:
    """Return the pipeline with the changes of the options, and the values of its secrets.

    With `--list`, no secrets are read.
    """
    from agent.pipeline import overrides

    env = dict(assignment.partition("=")[::2] for assignment in choices.env)
    if wrong := [each for each in choices.env if "=" not in each]:
        raise click.UsageError(f"--env {wrong[0]}: must be K=V")

    def change(pipeline: Pipeline) -> Pipeline:
        pipeline = overrides.select_actions(pipeline, choices.only) if choices.only else pipeline
        pipeline = overrides.with_env(pipeline, env)
        pipeline = overrides.with_secrets(pipeline, choices.secret)
        return overrides.without_repositories(pipeline) if choices.repo else pipeline

    if choices.listing:
        return read_pipeline(choices.file, None, lambda each: overrides.without_secrets(change(each)))
    return read_pipeline(choices.file, choices.secrets_file, change)


def run_settings(choices: Choices) -> Settings:
    """Return the settings of a run. Each run has a pool of its own, any free HTTP port, and logs only errors.

    As with kubectl, the namespace is that of the kube context, unless an option or a setting names another namespace.
    """
    import secrets

    from agent.cluster.api.configuration import context_namespace

    given = (("context", choices.context), ("namespace", choices.namespace))
    flags = parse_assignments(
        choices.assignments,
        cluster={key: value for key, value in given if value},
        agent={"pool": f"run-{secrets.token_hex(4)}", "adoption": False},
        http={"host": "127.0.0.1", "port": 0},
        logging={"level": "info" if choices.verbose else "error"},
    )
    settings = with_local_cluster(load(choices.config, flags), quiet=choices.quiet)
    if names_namespace(choices, flags) or not (namespace := context_namespace(settings.cluster)):
        return settings
    cluster = flags["cluster"] | {"namespace": namespace, "kubeconfig": settings.cluster.kubeconfig}
    return load(choices.config, flags | {"cluster": cluster})


def names_namespace(choices: Choices, flags: dict[str, Any]) -> bool:
    """Return whether an option, a variable or the file of settings names the namespace.

    The caller has already validated the file.
    """
    file = choices.config or os.environ.get("SEALCI_CONFIG")
    settings = yaml.safe_load(Path(file).read_text(encoding="utf-8")) if file else None
    in_file = (settings or {}).get("cluster") or {}
    in_variables = any(name.upper() == "SEALCI_CLUSTER__NAMESPACE" for name in os.environ)
    return "namespace" in flags["cluster"] or "namespace" in in_file or in_variables


def run_on_changes(choices: Choices, settings: Settings) -> int:
    """Run the pipeline file now, and again whenever the file changes.

    Returns when the user interrupts the command. The returned exit code is that of an interruption.
    """
    from agent.cli import working_tree

    while True:
        before = watched_state(choices)
        try:
            code = run_once(choices, settings)
        except (SettingsError, click.UsageError) as error:
            from agent.console.follower import print_notice

            print_notice(str(error))
            code = USAGE
        if code == INTERRUPTED:
            return code
        watched = f"{choices.file} and the tree at {choices.repo}" if choices.repo else str(choices.file)
        click.echo(f"watching {watched}: a change runs the pipeline again, Ctrl-C ends", err=True)
        raise_at_signals()
        try:
            working_tree.wait_for_change(lambda: watched_state(choices), before)
        except KeyboardInterrupt:
            return INTERRUPTED


def raise_at_signals() -> None:
    """Raise KeyboardInterrupt at SIGINT, SIGTERM and SIGHUP from now on, so that temporary folders are removed.

    The event loop of a run handles these signals in its own way while it runs.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def watched_state(choices: Choices) -> tuple[int, ...]:
    """Return numbers that differ after each change of the pipeline file, or of the working tree with `--repo`.

    Files that the run itself writes into the tree do not count.
    """
    from agent.cli import working_tree

    own = working_tree.file_fingerprint(choices.file)
    if choices.repo is None:
        return own
    written = [path for path in (choices.artifacts, *choices.reports) if path is not None]
    return (*own, working_tree.fingerprint(choices.repo, written))


def run_once(choices: Choices, settings: Settings) -> int:
    """Read the file, run the pipeline, and return the exit code."""
    from agent.cli import working_tree
    from agent.cli.run_agent import run_with_agent

    pipeline, secrets = read_changed_pipeline(choices)
    check_policy(pipeline, secrets, settings)
    raise_at_signals()
    with tempfile.TemporaryDirectory(prefix="sealci-tree-") as folder:
        tree = None
        if choices.repo is not None:
            tree = Path(folder) / "tree.tar"
            try:
                working_tree.pack(choices.repo, tree)
            except working_tree.WorkingTreeError as error:
                raise SettingsError(str(error)) from error
        return run_in_event_loop(lambda: run_with_agent(choices, settings, pipeline, secrets, tree))

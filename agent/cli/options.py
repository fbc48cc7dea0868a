"""Options that several commands share, and functions that read their values.

The functions run while the command line is read. Every error here is an error of the user and names the option.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from pydantic import BaseModel

from agent.console import terminal_text
from agent.domain.errors import SettingsError
from agent.domain.quantities import quantity, seconds
from agent.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.pipeline.parser import Pipeline
    from agent.settings import Settings


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `--config` and `--set` to a command."""
    command = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=complete_setting,
        help="Set a setting, as in --set agent.slots=20. May be given several times.",
    )(command)
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Read settings from this YAML file. Default: the variable SEALCI_CONFIG.",
    )(command)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a scheduler, its TLS and the token to a command."""
    for option in reversed(
        (
            click.option(
                "--scheduler",
                "address",
                default="localhost:7080",
                show_default=True,
                metavar="HOST:PORT",
                help="Address of the scheduler.",
            ),
            click.option("--token-file", type=click.Path(path_type=Path), help="Send the bearer token in this file."),
            click.option("--plaintext", is_flag=True, help="Use no TLS. For a scheduler on this machine."),
            click.option(
                "--ca-file", type=click.Path(path_type=Path), help="CA of the scheduler. Default: the system's CAs."
            ),
            click.option("--cert-file", type=click.Path(path_type=Path), help="Own certificate (mutual TLS)."),
            click.option("--key-file", type=click.Path(path_type=Path), help="Private key of the own certificate."),
            click.option(
                "--server-name", default="", help="Name in the scheduler's certificate, if it differs from the address."
            ),
        )
    ):
        command = option(command)
    return command


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `--output` and `--timestamps` to a command that shows a pipeline."""
    command = click.option(
        "--timestamps", is_flag=True, help="Write the time before each line, or into each JSON object. No live view."
    )(command)
    return click.option(
        "--output",
        type=click.Choice(["auto", "plain", "json"]),
        default="auto",
        show_default=True,
        help="How the pipeline is shown. auto: live on a terminal, lines otherwise.",
    )(command)


def check_reports(files: Sequence[Path]) -> None:
    """Refuse report files of an unknown format, before anything starts."""
    from agent.console.reports import report_files

    for file in files:
        try:
            report_files.format_for(file)
        except ValueError as error:
            raise click.UsageError(f"--report: {error}") from error


def parse_assignments(assignments: tuple[str, ...], **defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values of `--set a.b=value` as nested settings. Values are read as YAML.

    `defaults` holds values by section. An assignment replaces the default of the same key.
    """
    result: dict[str, Any] = {section: dict(values) for section, values in defaults.items()}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set {assignment}: must be KEY=VALUE")
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise click.UsageError(f"--set {assignment}: {section} is not a section")
        place[last] = read_value(assignment, value) if value else ""
    return result


def with_local_cluster(settings: Settings, *, quiet: bool = False) -> Settings:
    """Return the settings with the local cluster of `make cluster-up`, if no other cluster is configured.

    Prints one line on standard error if the local cluster is used, but not with `quiet`.
    """
    from agent.cluster.api.local_cluster import find_local_cluster

    file = find_local_cluster(settings.cluster)
    if file is None:
        return settings
    if not quiet:
        path = terminal_text.quoted(str(file))
        print_error(f"no kube context is set, using the local cluster of `make cluster-up`: {path}")
    return settings.model_copy(update={"cluster": settings.cluster.model_copy(update={"kubeconfig": file})})


def print_error(text: str) -> None:
    """Print an error, without control characters. All lines after the first are indented."""
    click.echo("\n  ".join(terminal_text.lines(f"sealci-agent: {text}")), err=True)


def read_value(assignment: str, value: str) -> Any:
    """Return the value of a `--set` option as YAML reads it. Errors show the whole option, `assignment`."""
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, TypeError, RecursionError) as error:
        # PyYAML does not catch errors that Python raises for a value, for example ValueError for the date 2026-99-99.
        # Such an error has no attribute `problem`.
        what = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise click.UsageError(f"--set {assignment[:200]}: the value is not valid YAML: {what}") from error


def parse_duration(option: str, text: str) -> float:
    """Return the duration given as an option, in seconds."""
    try:
        return seconds(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from error


def parse_size(option: str, text: str) -> int:
    """Return the number of bytes given as an option."""
    try:
        return int(quantity(text))
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from error


def complete_setting(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Complete the key of a setting in the shell, up to the equals sign."""
    from agent.settings import Settings

    return [f"{key}=" for key in keys_of(Settings()) if key.startswith(incomplete)]


def keys_of(section: BaseModel, prefix: str = "") -> list[str]:
    """Return the dotted keys of all settings in a section and its subsections."""
    return [
        key
        for name, value in section
        for key in (keys_of(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else [f"{prefix}{name}"])
    ]


def complete_context(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a context of the kubeconfig in the shell."""
    from agent.cluster.api.configuration import context_names

    return sorted(name for name in context_names(load(None, {}).cluster) if name.startswith(incomplete))


def complete_namespace(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Complete a namespace in the shell, from the contexts of the kubeconfig. No request is made."""
    from agent.cluster.api.configuration import context_names, context_namespace

    cluster = load(None, {}).cluster
    contexts = context_names(cluster)
    found = {context_namespace(cluster.model_copy(update={"context": name})) for name in contexts}
    return sorted(name for name in found | {"default"} if name and name.startswith(incomplete))


def check_policy(pipeline: Pipeline, secrets: dict[str, str], settings: Settings) -> None:
    """Check every action against the policy of the settings, so that nothing starts if an action is refused later.

    Raises:
        SettingsError: the policy refuses an action. The message has a line for each action.
    """
    from agent.domain.actions import Key
    from agent.domain.errors import ActionFailed
    from agent.execution.admission import admission_of

    admit = admission_of(settings)
    problems = []
    for action in pipeline.actions:
        try:
            admit(action.action(Key(action.name), secrets))
        except ActionFailed as error:
            problems.append(f"{pipeline.source}: {action.name}: {error.message}")
    if problems:
        raise SettingsError("\n".join(problems))


def read_pipeline(
    file: Path, secrets_file: Path | None, change: Callable[[Pipeline], Pipeline] = lambda pipeline: pipeline
) -> tuple[Pipeline, dict[str, str]]:
    """Read a pipeline file and apply the function `change` to the pipeline.

    Returns the changed pipeline and the values of the secrets that it names.

    Raises:
        SettingsError: the file or a secret is wrong or missing, or the change is not possible.
    """
    from agent.pipeline.file_errors import PipelineFileError
    from agent.pipeline.overrides import OptionError
    from agent.pipeline.parser import load as load_pipeline
    from agent.pipeline.secret_values import SecretsError, find_secrets

    try:
        pipeline = change(load_pipeline(file))
        return pipeline, find_secrets(pipeline.secrets, os.environ, secrets_file)
    except (PipelineFileError, SecretsError, OptionError, OSError) as error:
        raise SettingsError(str(error)) from error

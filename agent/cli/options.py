"""Options that several commands share, and functions that read their values.

The functions run while the command line is read. Every error here is an error of the user and names the option.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from agent.console import terminal_text
from agent.domain.errors import SettingsError
from agent.domain.quantities import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.pipeline.parser import Pipeline
    from agent.settings import Settings


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `--config` and `--set` to a command."""
    command = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a setting, as in --set agent.slots=20. May be given several times.",
    )(command)
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Read settings from this YAML file. Default: the variable SEALCI_CONFIG.",
    )(command)


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


def read_pipeline(
    file: Path, secrets_file: Path | None, change: Callable[[Pipeline], Pipeline] = lambda pipeline: pipeline
) -> tuple[Pipeline, dict[str, str]]:
    """Read a pipeline file and apply the function `change` to the pipeline.

    Returns the changed pipeline and the values of the secrets that it names.

    Raises:
        SettingsError: the file or a secret is wrong or missing, or the change is not possible.
    """
    from agent.pipeline.overrides import OptionError
    from agent.pipeline.parser import load as load_pipeline
    from agent.pipeline.secret_values import SecretsError, find_secrets
    from agent.pipeline.yaml_document import PipelineFileError

    try:
        pipeline = change(load_pipeline(file))
        return pipeline, find_secrets(pipeline.secrets, os.environ, secrets_file)
    except (PipelineFileError, SecretsError, OptionError, OSError) as error:
        raise SettingsError(str(error)) from error

"""The commands `init`, `lint` and `schema`: write a pipeline file, check files, and print their JSON schema."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import click

from agent.console import terminal_text
from agent.settings import load

USAGE = 2
# The image of a new pipeline file, if the pipeline does not run on a local cluster.
DEFAULT_IMAGE = "debian:stable"
TEMPLATE = """\
# Run it:                sealci-agent run {file}
# Keep logs and files:   sealci-agent run {file} --artifacts out
# Every key:             docs/pipelines.md
name: hello
actions:
  build:
    configuration:
      container: {image}   # {why}
    # One shell runs all commands, so `cd` and `export` carry over. The first failure ends the action.
    commands:
      - echo "hello from $(uname -sm)" | tee hello.txt
      - test -s hello.txt
    artifacts:
      paths: [hello.txt]
    timeout: 10m
  check:
    # `needs` is an order: `check` starts after `build`, in an empty workspace of its own.
    needs: [build]
    configuration:
      container: {image}
    env:
      COLOUR: blue
    commands:
      - test "$COLOUR" = blue
"""


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default="pipeline.yaml")
@click.option(
    "--image",
    default="",
    help=f"Image of the actions. Default: {DEFAULT_IMAGE}, or on a local cluster the agent's image, which is there.",
)
def init(file: Path, image: str) -> None:
    """Write a pipeline FILE to start from, pipeline.yaml by default.

    A file that exists is never overwritten.
    """
    from agent.cluster.api.local_cluster import find_local_cluster
    from agent.pipeline.file_errors import PipelineFileError
    from agent.pipeline.parser import parse

    settings = load(None, {})
    why = "any image with /bin/sh"
    if not image and find_local_cluster(settings.cluster) is not None:
        image, why = settings.environment.image, "any image with /bin/sh; this one is on the local cluster"
    name = shlex.quote(str(file)) if str(file).isprintable() else terminal_text.quoted(str(file))
    text = TEMPLATE.format(file=name, image=json.dumps(image or DEFAULT_IMAGE), why=why)
    try:
        parse(text, source="--image")
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except PipelineFileError as error:
        raise click.UsageError(str(error)) from error
    except FileExistsError as error:
        raise click.UsageError(f"{file} exists already, and init overwrites no file") from error
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from error
    click.echo(f"wrote {name}, now run it: {own_name()} run {name}")


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def lint(files: tuple[Path, ...]) -> None:
    """Check pipeline FILES and run nothing.

    \b
    Prints every problem with its line. Does not know the policy of an agent.
    Exit codes: 0 every file is valid, 2 a file is not.
    """
    from agent.pipeline.file_errors import PipelineFileError
    from agent.pipeline.parser import load as load_pipeline

    wrong = False
    for file in files:
        try:
            count = len(load_pipeline(file).actions)
            click.echo(f"{terminal_text.quoted(str(file))}: valid, {count} action{'' if count == 1 else 's'}")
        except PipelineFileError as error:
            wrong = True
            click.echo("\n".join(terminal_text.lines(str(error))), err=True)
    if wrong:
        sys.exit(USAGE)


@click.command()
def schema() -> None:
    """Print the JSON schema of pipeline files, for editors."""
    from agent.pipeline.schema import text

    click.echo(text(), nl=False)


def own_name() -> str:
    """Return what a user types to start this command again: its name, or its path if it is not on the PATH."""
    name = "sealci-agent"
    started = Path(sys.argv[0])
    if started.name != name or shutil.which(name) == str(started):
        return name
    return shlex.quote(str(started))

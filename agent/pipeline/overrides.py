"""What the options of `run` change about a pipeline that was read from a file: which actions, and what they get.

Pure. The text of the file stays what it was; only the values that are run differ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.errors import AgentError
from agent.pipeline.parser import VARIABLE
from agent.pipeline.yaml_document import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.pipeline.parser import Pipeline, PipelineAction


class OptionError(AgentError):
    """An option does not fit the pipeline."""


def select_actions(pipeline: Pipeline, names: Sequence[str]) -> Pipeline:
    """Return these actions alone; what they need of the others is not waited for.

    Raises:
        OptionError: there is no such action.
    """
    known = [each.name for each in pipeline.actions]
    for name in names:
        if name not in known:
            raise OptionError(
                f"--only: there is no action {name!r}{suggestion(name, known)}; there are: {', '.join(known)}"
            )
    chosen = tuple(
        replace(each, needs=tuple(need for need in each.needs if need in names))
        for each in pipeline.actions
        if each.name in names
    )
    return replace(pipeline, actions=chosen)


def with_env(pipeline: Pipeline, values: Mapping[str, str]) -> Pipeline:
    """Return the pipeline with variables for every action, over those of the file.

    Raises:
        OptionError: one is no variable, or a secret.
    """
    for name in values:
        check(name, "--env")
        if name in pipeline.secrets:
            raise OptionError(f"--env: {name} is a secret of the pipeline; set it in the environment or --secrets-file")
    return replace(pipeline, actions=tuple(replace(each, env={**each.env, **values}) for each in pipeline.actions))


def with_secrets(pipeline: Pipeline, names: Sequence[str]) -> Pipeline:
    """Return the pipeline with secrets for every action, beside those of the file.

    Raises:
        OptionError: one is no variable, or is set in `env` already.
    """
    for name in names:
        check(name, "--secret")
        if any(name in each.env for each in pipeline.actions):
            raise OptionError(f"--secret: {name} is set in `env` too")

    def more(action: PipelineAction) -> PipelineAction:
        return replace(action, secrets=tuple(dict.fromkeys((*action.secrets, *names))))

    return replace(pipeline, actions=tuple(more(each) for each in pipeline.actions))


def without_repositories(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline without clones: a tree of this machine is the workspace."""
    return replace(pipeline, actions=tuple(replace(each, repository=None) for each in pipeline.actions))


def without_secrets(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline without its secrets: for a look that needs no values."""
    return replace(pipeline, actions=tuple(replace(each, secrets=()) for each in pipeline.actions))


def check(name: str, option: str) -> None:
    """Refuse what no shell takes for a variable."""
    if not VARIABLE.fullmatch(name):
        raise OptionError(f"{option}: {name!r} is not a variable: letters, digits and '_', not beginning with a digit")

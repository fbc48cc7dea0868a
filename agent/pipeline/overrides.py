"""Apply the options of `sealci-agent run` to a pipeline: select actions, and add variables and secrets.

Pure functions. Each returns a changed copy of the pipeline. The text of the pipeline file stays the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.errors import AgentError
from agent.pipeline.action_keys import VARIABLE
from agent.pipeline.yaml_document import SURROGATE, suggestion

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from agent.pipeline.parser import Pipeline, PipelineAction


class OptionError(AgentError):
    """An option of `run` does not fit the pipeline. The message names the option."""


def select_actions(pipeline: Pipeline, names: Sequence[str]) -> Pipeline:
    """Return the pipeline with only the named actions. Their needs outside the selection are dropped.

    The name of an action with a matrix stands for all its variants.

    Raises:
        OptionError: the pipeline has no action with one of these names, or an action takes files of an action outside
            the selection.
    """
    known = list(dict.fromkeys(name for each in pipeline.actions for name in (each.entry, each.name) if name))
    for name in names:
        if name not in known:
            raise OptionError(
                f"--only: there is no action {name!r}{suggestion(name, known)}; there are: {', '.join(known)}"
            )
    chosen = [each for each in pipeline.actions if each.name in names or each.entry in names]
    left = {each.name for each in chosen}
    return replace(pipeline, actions=tuple(select_needs(each, left) for each in chosen))


def select_needs(action: PipelineAction, names: Container[str]) -> PipelineAction:
    """Return the action without needs and optional inputs outside a selection of actions."""
    for rule in action.inputs:
        if rule.source not in names and not rule.optional:
            raise OptionError(f"--only: {action.name} takes files of {rule.source}; name {rule.source} too")
    return replace(
        action,
        needs=tuple(need for need in action.needs if need in names),
        inputs=tuple(rule for rule in action.inputs if rule.source in names),
    )


def with_env(pipeline: Pipeline, values: Mapping[str, str]) -> Pipeline:
    """Return the pipeline with variables for every action.

    These variables replace variables of the file with the same name.

    Raises:
        OptionError: a name is not a variable name, or is a secret of the pipeline.
    """
    for name, value in values.items():
        check_variable(name, "--env")
        # Python hands over bytes of the command line that are not UTF-8 as halves of surrogate pairs, which no encoder
        # accepts.
        if SURROGATE.search(value):
            raise OptionError(f"--env: the value of {name} is not UTF-8 text")
        if name in pipeline.secrets:
            raise OptionError(f"--env: {name} is a secret of the pipeline; set it in the environment or --secrets-file")
    return replace(pipeline, actions=tuple(replace(each, env={**each.env, **values}) for each in pipeline.actions))


def with_secrets(pipeline: Pipeline, names: Sequence[str]) -> Pipeline:
    """Return the pipeline with these names of secrets added to every action.

    Raises:
        OptionError: a name is not a variable name, or is also set in `env`.
    """
    for name in names:
        check_variable(name, "--secret")
        if any(name in each.env for each in pipeline.actions):
            raise OptionError(f"--secret: {name} is also set in `env`")

    def more(action: PipelineAction) -> PipelineAction:
        return replace(action, secrets=tuple(dict.fromkeys((*action.secrets, *names))))

    return replace(pipeline, actions=tuple(more(each) for each in pipeline.actions))


def without_repositories(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline without repositories. `run --repo` uploads a local folder as the workspace instead."""
    return replace(pipeline, actions=tuple(replace(each, repository=None) for each in pipeline.actions))


def without_secrets(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline without secrets. `run --list` uses it, because a list needs no secret values."""

    def without(action: PipelineAction) -> PipelineAction:
        return replace(action, secrets=(), services=tuple(replace(each, secrets=()) for each in action.services))

    return replace(pipeline, actions=tuple(map(without, pipeline.actions)))


def check_variable(name: str, option: str) -> None:
    """Raise `OptionError` for a name that a shell does not accept as a variable."""
    if not VARIABLE.fullmatch(name):
        raise OptionError(
            f"{option}: {name!r} is not a variable name: letters, digits and '_', not beginning with a digit"
        )

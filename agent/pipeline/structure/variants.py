"""The keys `matrix` and `needs`: one action for each combination of values, and the actions that an action needs.

    test:
      matrix: {PYTHON: ["3.12", "3.13"]}
      configuration: {container: "python:${PYTHON}"}
      commands: [pytest]

becomes `test-3.12` and `test-3.13`. Each value is a variable of the commands. In keys that the shell does not read,
such as the image, `${NAME}` stands for the value. The shell expands the variables of the commands itself. Pure.
"""

from __future__ import annotations

import re
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import islice, product
from typing import TYPE_CHECKING

from agent.pipeline.action_keys import check_variable
from agent.pipeline.inputs import check_inputs
from agent.pipeline.yaml_document import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.pipeline.parser import PipelineAction
    from agent.pipeline.yaml_document import Value

# Keys in which `${NAME}` stands for a value of the matrix.
SUBSTITUTED = ("configuration", "class", "resources", "timeout", "repo", "artifacts", "services", "cache", "inputs")
# Maximum number of combinations of one action.
MAX_VARIANTS = 100
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")

Variables = dict[str, str]


def read_matrix(value: Value) -> list[Variables]:
    """Return the variables of each combination, in the order of the file: the last variable changes fastest."""
    lists: dict[str, list[str]] = {}
    for name, item in value.mapping("a mapping from variables to lists of texts").items():
        check_variable(name, item)
        lists[name] = [each.non_empty("a text") for each in item.items("a list of texts")]
        if not lists[name]:
            item.refuse("must have at least one value")
        if len(set(lists[name])) < len(lists[name]):
            item.refuse("has a value twice")
    if not lists:
        value.refuse("must name at least one variable")
    found = [dict(zip(lists, values, strict=True)) for values in islice(product(*lists.values()), MAX_VARIANTS + 1)]
    if len(found) > MAX_VARIANTS:
        value.refuse(f"has too many combinations; at most {MAX_VARIANTS} are allowed")
    return found


def variant_name(name: str, variables: Variables) -> str:
    """Return the name of a variant: the name of the action and the values, as in `test-3.12-debian`."""
    values = (NOT_IN_NAMES.sub("-", each).strip("-") for each in variables.values())
    return "-".join((name, *values))


def substituted(keys: Mapping[str, Value], variables: Variables) -> dict[str, Value]:
    """Return the keys of an action, in which `${NAME}` stands for a value where the shell does not read the key."""
    if not variables:
        return dict(keys)
    return {name: replace(value, variables=variables) if name in SUBSTITUTED else value for name, value in keys.items()}


def resolve_needs(
    values: Mapping[str, Value], variants: Mapping[str, Sequence[PipelineAction]]
) -> tuple[PipelineAction, ...]:
    """Return all actions. A need that names an action with a matrix stands for all its variants.

    The actions of inputs become needs. Refuse needs that name no action, that repeat a name, or that form a circle.
    """
    groups: dict[str, list[PipelineAction]] = {each.name: [each] for group in variants.values() for each in group}
    groups |= {name: list(group) for name, group in variants.items()}
    actions = []
    for entry, group in variants.items():
        if group and group[0].needs:
            check_needs(values[entry].mapping("an action")["needs"], group[0].needs, list(groups))
        for action in group:
            if action.inputs:
                check_inputs(values[entry].mapping("an action")["inputs"], action.inputs, groups)
            actions.append(replace(with_needs(action, groups), entry=entry))
    if circle := find_circle(actions):
        entry = next(name for name, group in variants.items() if circle[0] in (each.name for each in group))
        keys = values[entry].mapping("an action")
        where = keys["needs"] if "needs" in keys else keys["inputs"]
        where.refuse(f"the needs form a circle: {' -> '.join(circle)}")
    return tuple(actions)


def with_needs(action: PipelineAction, groups: Mapping[str, Sequence[PipelineAction]]) -> PipelineAction:
    """Return an action whose needs and inputs name variants. The actions of inputs become needs."""
    inputs = tuple(
        replace(rule, source=source.name) for rule in action.inputs for source in groups.get(rule.source, ())
    )
    needed = (each.name for name in action.needs for each in groups.get(name, ()))
    needs = dict.fromkeys((*needed, *(rule.source for rule in inputs)))
    return replace(action, needs=tuple(needs), inputs=inputs)


def check_needs(value: Value, needs: Sequence[str], names: Sequence[str]) -> None:
    """Note each need that names no action or that repeats a name. `names` are all names that a need may have."""
    for item, name in zip(value.items("a list"), needs, strict=True):
        with item.document.collect():
            if name not in names:
                item.refuse(f"there is no action {name!r}{suggestion(name, names)}; there are: {', '.join(names)}")
            if needs.count(name) > 1:
                item.refuse(f"{name} is listed twice")


def find_circle(actions: Sequence[PipelineAction]) -> list[str]:
    """Return names of actions of which each needs the next. The first name, repeated at the end, closes the circle.

    The circle starts with the action that comes first in the file. Without a circle, the list is empty.
    """
    try:
        TopologicalSorter({action.name: action.needs for action in actions}).prepare()
    except CycleError as error:
        # graphlib lists the circle in the opposite order: each need comes before the action that needs it.
        *ring, _ = reversed(error.args[1])
        names = [action.name for action in actions]
        start = min(range(len(ring)), key=lambda index: names.index(ring[index]))
        return [*ring[start:], *ring[: start + 1]]
    return []

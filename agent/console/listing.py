"""The actions of a pipeline file as a tree, for `run --list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from agent.console.formatting import count

if TYPE_CHECKING:
    from agent.pipeline.parser import Pipeline


def listing(pipeline: Pipeline) -> Tree:
    """Return the actions as a tree, each under what it needs."""
    tree = Tree(Text(pipeline.name, "bold"), guide_style="dim")
    nodes: dict[str, Tree] = {}
    waiting = list(pipeline.actions)
    while waiting:
        for action in [each for each in waiting if all(need in nodes for need in each.needs)]:
            parent = next((name for name in reversed(nodes) if name in action.needs), "")
            others = [need for need in action.needs if need != parent]
            text = Text.assemble(
                (action.name, "bold"), (f"  {action.image}  {count(len(action.commands), 'command')}", "dim")
            )
            text.append(f"  needs {', '.join(others)} too" if others else "", "dim")
            nodes[action.name] = nodes.get(parent, tree).add(text)
        waiting = [each for each in waiting if each.name not in nodes]
    return tree

"""The actions of a pipeline as a tree, in the order of their needs.

`run --list` prints the tree of a pipeline file. The live view uses the same order for its own tree.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from rich.tree import Tree

from agent.console.formatting import plural, styled

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from agent.pipeline.parser import Pipeline


def dependency_order(needs: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Yield every action after all actions that it needs. `needs` maps an action to the actions that it needs.

    Actions of the same depth keep the order of `needs`. Needed actions that are no key of `needs` are ignored.
    """
    sorter = TopologicalSorter({name: [each for each in needed if each in needs] for name, needed in needs.items()})
    sorter.prepare()
    while sorter.is_active():
        ready = set(sorter.get_ready())
        yield from (name for name in needs if name in ready)
        sorter.done(*ready)


def tree_parent(needs: Collection[str], placed: Iterable[str]) -> str:
    """Return the action under which an action with these needs stands in the tree.

    `placed` names the actions that are in the tree already. The parent is the last of them that is also in `needs`.

    A tree has one parent for each node, so the other needs are printed as text. Returns "" if no need is placed.
    """
    return next((name for name in reversed(list(placed)) if name in needs), "")


def listing(pipeline: Pipeline) -> Tree:
    """Return the tree of a pipeline file, with the image and the number of commands of each action."""
    tree = Tree(styled((pipeline.name, "bold")), guide_style="dim")
    nodes: dict[str, Tree] = {}
    actions = {action.name: action for action in pipeline.actions}
    for name in dependency_order({action.name: action.needs for action in pipeline.actions}):
        action = actions[name]
        parent = tree_parent(action.needs, nodes)
        others = [need for need in action.needs if need != parent]
        also = f"  needs {', '.join(others)} too" if others else ""
        details = f"  {action.image}  {plural(len(action.commands), 'command')}{also}"
        nodes[action.name] = nodes.get(parent, tree).add(styled((action.name, "bold"), (details, "dim")))
    return tree

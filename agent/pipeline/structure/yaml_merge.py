"""YAML's merge keys: `<<: *name` takes over the keys of another mapping.

The keys are merged once, in the tree of nodes, so that no other module knows about merge keys. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import yaml

from agent.pipeline.yaml_document import STANDARD, Value, children

if TYPE_CHECKING:
    from agent.pipeline.file_errors import Document

MERGE = f"{STANDARD}merge"
Pair = tuple[yaml.Node, yaml.Node]


def merge_keys(root: Value) -> None:
    """Replace each merge key by the keys of the mappings that it names. Own keys win, then those of earlier mappings.

    Raises:
        PipelineFileError: a merge key names something else than mappings.
    """
    resolve(root.node, root.document, set())


def resolve(node: yaml.Node, document: Document, done: set[int]) -> None:
    # An alias names a node that begins earlier in the file. So its merge keys are resolved when its alias is reached,
    # and the recursion is as deep as the file is nested.
    if id(node) in done:
        return
    done.add(id(node))
    for child in children(node):
        resolve(child, document, done)
    if isinstance(node, yaml.MappingNode) and any(key.tag == MERGE for key, _ in node.value):
        node.value = merged(node, document)


def merged(node: yaml.MappingNode, document: Document) -> list[Pair]:
    """Return the keys and values of a mapping, with those that its merge keys take over behind its own."""
    found = [pair for pair in node.value if pair[0].tag != MERGE]
    for _, value in (pair for pair in node.value if pair[0].tag == MERGE):
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(source, yaml.MappingNode):
                wrong = Value(source, document)
                wrong.refuse(f"`<<` takes over mappings, as in `<<: *name`, not {wrong.kind}")
            found = joined(found, source.value)
    return found


def joined(own: list[Pair], below: list[Pair]) -> list[Pair]:
    """Return the pairs of two mappings. A key of `own` wins."""
    taken = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
    return own + [pair for pair in below if not isinstance(pair[0], yaml.ScalarNode) or pair[0].value not in taken]


def combined(own: Value, below: Value) -> Value:
    """Return a value with the keys of two mappings. A key of `own` wins. If one is no mapping, return `own`."""
    if not isinstance(own.node, yaml.MappingNode) or not isinstance(below.node, yaml.MappingNode):
        return own
    own.document.count_repeated(len(below.node.value))
    pairs = joined(own.node.value, below.node.value)
    return replace(own, node=yaml.MappingNode(own.node.tag, pairs, own.node.start_mark, own.node.end_mark))

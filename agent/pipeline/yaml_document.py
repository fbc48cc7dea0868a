"""Read a YAML document and keep the line and the key of every value, so that an error message can name both.

Scalars stay text, because YAML's own types surprise users. `- true` is the command `true`, `FOO: 1.10` is the text
"1.10", and `yes` is a boolean only where a boolean is allowed. A `Value` lives while one file is read. The first error
in the syntax ends the reading.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, NoReturn, TypeVar

import yaml

from agent.pipeline.file_errors import OTHERS_KEYS, Document, PipelineFileError, Place, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Result = TypeVar("Result")

# Maximum number of characters of a pipeline file.
MAX_SIZE = 1 << 20
# Maximum number of nodes of a document. `MAX_CHARACTERS` limits their characters together. A node that an alias repeats
# counts once for each repetition.
MAX_NODES = 100_000
MAX_CHARACTERS = 8 << 20
# Maximum number of lists and mappings around a value. PyYAML's work for each character grows with this number.
MAX_DEPTH = 20
STANDARD = "tag:yaml.org,2002:"
NULL = f"{STANDARD}null"
# The tags that YAML gives to values without a tag.
NAMES_OF_TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
TAGS = frozenset(STANDARD + name for name in NAMES_OF_TAGS)
SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
SURROGATE = re.compile("[\ud800-\udfff]")
# Text that stands for a variable of a matrix.
PLACEHOLDER = re.compile(r"\$\{(\w+)\}", re.ASCII)
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Value:
    """A YAML node with its document, the keys that lead to the node, and the node of the last of these keys.

    `variables` are the values that `${NAME}` stands for in the texts of this value.
    """

    node: yaml.Node
    document: Document
    path: tuple[str, ...] = ()
    key: yaml.Node | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def problem(self, message: str, node: yaml.Node | None = None) -> Problem:
        """Return a problem of this value. The problem's place is that of `node`, or of this value if `node` is None."""
        path = ".".join(self.path)
        return self.document.problem(place_of(node or self.node), f"{path + ': ' if path else ''}{message}")

    def refuse(self, message: str) -> NoReturn:
        """Raise `PipelineFileError` for this value."""
        raise PipelineFileError(self.problem(message))

    def refuse_key(self, message: str) -> NoReturn:
        """Raise `PipelineFileError` for the key of this value."""
        raise PipelineFileError(self.problem(message, self.key))

    def refuse_missing(self, message: str) -> NoReturn:
        """Raise `PipelineFileError` for a mapping that lacks a key.

        If the mapping also has a key that is not allowed, the error has no problem, because this key is perhaps the
        missing key, misspelt.
        """
        raise PipelineFileError(
            *(() if id(self.node) in self.document.misspelt else (self.problem(message, self.key),))
        )

    def attempt(self, reader: Callable[[Value], Result], default: Result) -> Result:
        """Return what `reader` makes of this value. If `reader` refuses it, add the problem and return `default`."""
        with self.document.collect():
            return reader(self)
        return default

    @property
    def kind(self) -> str:
        """A description of the node for messages: "a mapping", "a list", "nothing", or the quoted text."""
        if isinstance(self.node, yaml.MappingNode):
            return "a mapping"
        if isinstance(self.node, yaml.SequenceNode):
            return "a list"
        if self.node.tag == NULL:
            return "nothing"
        return repr(self.node.value)

    @property
    def size(self) -> int:
        """The number of scalars in this value, keys not counted, at least 1."""
        return count_scalars(self.node)

    @property
    def is_scalar(self) -> bool:
        """Whether the node is a scalar other than null."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag != NULL

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    def mapping(self, what: str, allowed: Iterable[str] = ()) -> dict[str, Value]:
        """Return the values by key. `what` names the wanted type.

        If `allowed` is not empty, a problem is added for each other key, and the key is left out.
        """
        if not isinstance(self.node, yaml.MappingNode):
            self.refuse(f"must be {what}, not {self.kind}")
        names = tuple(allowed)
        found: dict[str, Value] = {}
        for key_node, value_node in self.node.value:
            name = Value(key_node, self.document, self.path).text("a key")
            here = Value(value_node, self.document, (*self.path, name), key_node, self.variables)
            if name in found:
                self.document.add(here.problem("this key is set twice", key_node))
            elif names and name not in names:
                hint = f", {OTHERS_KEYS[name]}" if name in OTHERS_KEYS else suggestion(name, names)
                self.document.misspelt.add(id(self.node))
                message = f"there is no such key{hint}; allowed: {', '.join(names)}"
                self.document.add(here.problem(message, key_node))
            else:
                found[name] = here
        return found

    def items(self, what: str) -> list[Value]:
        """Return the values of a list. Error messages number the values from 1, and name the wanted type as `what`."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.refuse(f"must be {what}, not {self.kind}")
        last = self.path[-1] if self.path else ""
        return [
            Value(node, self.document, (*self.path[:-1], f"{last}[{number}]"), variables=self.variables)
            for number, node in enumerate(self.node.value, 1)
        ]

    def text(self, what: str = "a text") -> str:
        """Return the text of a scalar exactly as written in the file."""
        if not self.is_scalar:
            self.refuse(f"must be {what}, not {self.kind}")
        # JSON writes a character beyond U+FFFF as two halves, and PyYAML leaves the halves as they are.
        value = SURROGATE_PAIR.sub(joined_pair, str(self.node.value))
        if SURROGATE.search(value):
            self.refuse("must not contain half of a surrogate pair")
        if "\0" in value:
            self.refuse("must not contain a NUL character")
        return PLACEHOLDER.sub(lambda found: self.variables.get(found[1], found[0]), value)

    def non_empty(self, what: str = "a text") -> str:
        """Return the text of a scalar. Refuse an empty text."""
        text = self.text(what)
        if not text.strip():
            self.refuse(f"must be {what}, not an empty text")
        return text

    def choice(self, allowed: Iterable[str]) -> str:
        """Return the text of a scalar. Refuse a text that is not in `allowed`."""
        names = tuple(allowed)
        text = self.text(f"one of {', '.join(names)}")
        if text not in names:
            self.refuse(f"must be one of {', '.join(names)}, not {text!r}{suggestion(text, names)}")
        return text

    def boolean(self) -> bool:
        """Return a boolean. The spellings are those of `BOOLEANS`, in upper or lower case."""
        found = BOOLEANS.get(self.text("true or false").lower())
        if found is None:
            self.refuse(f"must be true or false, not {self.kind}")
        return found


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return the end of a message that suggests the closest of `names`, or "" if none is close."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def joined_pair(match: re.Match[str]) -> str:
    """Return the one character that the two halves of a surrogate pair stand for."""
    return match[0].encode("utf-16", "surrogatepass").decode("utf-16")


def place_of(node: yaml.Node) -> Place:
    """Return the place of a node in its first line."""
    start, end = node.start_mark, node.end_mark
    return Place(start.line, start.column, end.column if end.line == start.line else None)


def read_document(text: str, source: str) -> Value:
    """Read one YAML document.

    Raises:
        PipelineFileError: the text is not one YAML document, is empty, is too large, or has a tag that is not known.
    """
    if len(text) > MAX_SIZE:
        raise PipelineFileError(Problem(f"{source}: has {len(text)} characters; at most {MAX_SIZE} are read"))
    document = Document(source, text)
    node = compose(document)
    if node is None:
        raise PipelineFileError(document.problem(Place(0, 0), "is empty; a pipeline has `name` and `actions`"))
    check_nodes(node, document)
    return Value(node, document)


class Loader(yaml.SafeLoader):
    """Composes the nodes of one text. It stops at the limits, so that a small file cannot take minutes."""

    def __init__(self, document: Document) -> None:
        super().__init__(document.text)
        self.document = document
        self.depth = 0
        self.nodes = 0
        # Start and end of the last quoted text.
        self.quote: tuple[yaml.Mark, yaml.Mark] | None = None

    def scan_flow_scalar(self, style: str) -> yaml.ScalarToken:
        """Read a quoted text, and record its start and end. Without a closing quote, the text includes later lines."""
        token = super().scan_flow_scalar(style)
        self.quote = (token.start_mark, token.end_mark)
        return token

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node.

        Raises:
            PipelineFileError: the node is nested too deeply, or the document has too many nodes.
        """
        self.check_depth(self.depth)
        if self.nodes >= MAX_NODES:
            self.refuse(f"has more than {MAX_NODES} values")
        self.nodes += 1
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Read `[` or `{`. PyYAML scans tokens ahead of `compose_node`, so the depth is checked here too."""
        self.check_depth(self.flow_level)
        super().fetch_flow_collection_start(token)

    def check_depth(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.refuse(f"is nested more than {MAX_DEPTH} levels deep")

    def refuse(self, message: str) -> NoReturn:
        mark = self.get_mark()
        raise PipelineFileError(self.document.problem(Place(mark.line, mark.column), message))


def compose(document: Document) -> yaml.Node | None:
    """Return the root node of a YAML text, or None if the text is empty.

    Raises:
        PipelineFileError: the text is not one YAML document.
    """
    loader = None
    # Composing builds nodes with line numbers. It constructs no Python objects, so no tag of the file has an effect.
    try:
        loader = Loader(document)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        place, what = syntax_error(error, loader.quote if loader else None)
    except yaml.reader.ReaderError as error:
        before = document.text[: error.position]
        place = Place(before.count("\n"), len(before) - before.rfind("\n") - 1)
        what = f"the character U+{ord(document.text[error.position]):04X} is not allowed"
    except (yaml.YAMLError, ValueError, OverflowError, LookupError):
        # PyYAML does not catch the errors that Python raises for a code point beyond U+10FFFF, or for a YAML version
        # number of thousands of digits.
        mark = loader.get_mark() if loader else None
        place = Place(mark.line, mark.column) if mark else Place(0, 0)
        what = "a code point or number is out of range"
    raise PipelineFileError(document.problem(place, f"is not valid YAML: {what}"))


def syntax_error(error: yaml.MarkedYAMLError, quote: tuple[yaml.Mark, yaml.Mark] | None) -> tuple[Place, str]:
    """Return the place and the description of an error in the syntax. `quote`: the last quoted text before the error.

    If a quote has no end, the place is its beginning, because PyYAML notices the error only lines later.
    """
    mark = error.problem_mark or error.context_mark
    if error.context == "while scanning a quoted scalar" and error.context_mark and error.problem_mark:
        start = error.context_mark
        if "end of stream" in (error.problem or "") or "document separator" in (error.problem or ""):
            return Place(start.line, start.column), "the quote that begins here has no end"
    if quote and mark and quote[0].line < quote[1].line == mark.line:
        return Place(quote[0].line, quote[0].column), f"the quote that begins here ends only in line {mark.line + 1}"
    what = ", ".join(part for part in (error.context, error.problem) if part)
    return Place(mark.line, mark.column, mark.column + 1) if mark else Place(0, 0), what


def check_nodes(root: yaml.Node, document: Document) -> None:
    """Check the tag of each node, and the size of each node when every alias is replaced by its value.

    Raises:
        PipelineFileError: a tag is not known, a value contains itself, or the document is too large.
    """
    # By `id` of each node: the number of nodes and of characters in the node, itself included. None means that these
    # numbers are not yet known, because the loop is still among the children of the node.
    sizes: dict[int, tuple[int, int] | None] = {}
    waiting: list[tuple[yaml.Node, bool]] = [(root, False)]
    while waiting:
        node, leaving = waiting.pop()
        if leaving:
            found = [sizes[id(child)] or (0, 0) for child in children(node)]
            characters = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            sizes[id(node)] = 1 + sum(each[0] for each in found), characters + sum(each[1] for each in found)
            check_size(node, sizes[id(node)] or (0, 0), document)
        elif id(node) not in sizes:
            check_tag(node, document)
            sizes[id(node)] = None
            waiting.append((node, True))
            waiting += [(child, False) for child in children(node)]
        elif sizes[id(node)] is None:
            Value(node, document).refuse("contains itself by an alias")


def children(node: yaml.Node) -> list[yaml.Node]:
    """Return the keys and values of a mapping, or the items of a list."""
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def count_scalars(node: yaml.Node) -> int:
    values = children(node)[1::2] if isinstance(node, yaml.MappingNode) else children(node)
    return sum(map(count_scalars, values)) or 1


def check_size(node: yaml.Node, size: tuple[int, int], document: Document) -> None:
    if size[0] > MAX_NODES:
        Value(node, document).refuse(f"has more than {MAX_NODES} values, counted with the values that aliases repeat")
    if size[1] > MAX_CHARACTERS:
        Value(node, document).refuse(f"has more than {MAX_CHARACTERS} characters, counted with those of aliases")


def check_tag(node: yaml.Node, document: Document) -> None:
    """Refuse YAML tags of other CI systems. If tags were ignored, `!reference [a, b]` would be a list of commands."""
    if node.tag not in TAGS:
        tag = f"!!{node.tag.removeprefix(STANDARD)}" if node.tag.startswith(STANDARD) else node.tag
        Value(node, document).refuse(f"the tag {tag!r} is not known; a pipeline file has no tags")

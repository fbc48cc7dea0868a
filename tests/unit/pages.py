"""Parse the documentation's Markdown pages for `test_docs`: code blocks, inline code, commands, headings and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^\s*(```+|~~~+)\s*(\w*)")
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|<(?:img|a)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
# Languages of code blocks that contain no commands.
DATA = ("yaml", "json", "text")


@dataclass(frozen=True)
class Block:
    """A block of code in a page. `line` is the number of the block's first line in the page."""

    page: Path
    line: int
    language: str
    text: str


def where(page: Path, line: int) -> str:
    return f"{page.relative_to(ROOT)}:{line}"


@cache
def split(page: Path) -> tuple[tuple[Block, ...], tuple[str, ...]]:
    """Return the code blocks of a page, and the lines of the page. Lines of code blocks are replaced by empty lines."""
    blocks: list[Block] = []
    prose: list[str] = []
    inside: list[str] = []
    fence, language, start = "", "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        found = FENCE.match(line)
        if not fence and found:
            fence, language, start, inside = found[1], found[2], number + 1, []
        elif fence and found and found[1] == fence and not found[2]:
            width = min((len(each) - len(each.lstrip()) for each in inside if each.strip()), default=0)
            blocks.append(Block(page, start, language, "\n".join(each[width:] for each in inside) + "\n"))
            fence = ""
        elif fence:
            inside.append(line)
        prose.append("" if fence or found else line)
    assert not fence, f"{where(page, start)}: the code block does not end"
    return tuple(blocks), tuple(prose)


def spans(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each piece of inline code in a page: its place, as the page and the line, and its text."""
    for number, line in enumerate(split(page)[1], 1):
        for found in SPAN.finditer(line):
            yield where(page, number), found[1]


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each simple command in the code of a page, with its place.

    A shell prompt, or variables that are set before the command, are left out.
    """
    for block in split(page)[0]:
        if block.language not in DATA:
            yield from block_commands(block)
    for place, text in spans(page):
        if re.match(r"(sealci-agent|make) \S", text):
            yield from ((place, words) for words in simple_commands(text))


def block_commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    text, number = "", block.line
    for offset, line in enumerate(block.text.splitlines()):
        text += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        yield from ((where(block.page, number), words) for words in simple_commands(text))
        text, number = "", block.line + offset + 1


def simple_commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each simple command in a line of shell, without variables that are set before the command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:
        # The shell syntax of this line is wrong, because it is the output of a command. So the line has no commands.
        return
    words: list[str] = []
    for token in [*tokens, ";"]:
        if not set(token) <= set("();<>|&"):
            words.append(token)
            continue
        while words and (words[0] == "$" or re.match(r"[A-Z_]+=", words[0])):
            words.pop(0)
        if words:
            yield words
        words = []


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    found: dict[str, int] = {}
    names = []
    for line in split(page)[1]:
        if heading := HEADING.match(line):
            name = slug(heading[1])
            names.append(f"{name}-{found[name]}" if name in found else name)
            found[name] = found.get(name, 0) + 1
    return frozenset(names)


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Yield each link of a page that points into the repository: the number of its line, and its target."""
    for number, line in enumerate(split(page)[1], 1):
        for found in LINK.finditer(SPAN.sub("", line)):
            target = found[1] or found[2]
            if not re.match(r"[a-z]+:", target):
                yield number, target

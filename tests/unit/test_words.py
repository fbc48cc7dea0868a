"""The glossary as a check: prose uses the usual words of Kubernetes and CI, not the private words of version 1.

Prose is every comment, docstring, message (a string with a space in it) and documentation page. The table in
docs/glossary.md explains what to write in place of each refused word.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
REFUSED = re.compile(
    r"""\b(
        heirs? | strangers? | wish(es|ed)? | lingers?(ed|ing)? | workbench | whoever | nobody
      | tells? | told | says? | said | forgot(ten)?
      | ma(d|k)es?\ (it\ )?again | lost\ (its\ )?memory | news | patiently
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
# The glossary and this test list the refused words.
EXEMPT = {"docs/glossary.md", "tests/unit/test_words.py"}
# Names of users and groups that contain a refused word.
QUOTED = ("su nobody", "nobody:nogroup")


def sources() -> list[Path]:
    """Return the Python files that people write. Generated code is left out."""
    found = [path for folder in ("agent", "deploy", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "_pb2" not in path.name and str(path.relative_to(ROOT)) not in EXEMPT]


def pages() -> list[Path]:
    """Return the documentation pages, proto files and shell scripts. The test checks each of their lines."""
    patterns = (
        "*.md",
        "docs/*.md",
        "charts/**/*.md",
        "charts/**/*.txt",
        "proto/**/*.proto",
        "tests/**/*.md",
        "agent/**/*.sh",
    )
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [path for path in found if str(path.relative_to(ROOT)) not in EXEMPT]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each comment of a Python file, and each string that contains a space, with its line number."""
    text = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line


def offenders(path: Path, lines: Iterator[tuple[int, str]]) -> list[str]:
    """Return a line of text for each refused word: its file and line, the word, and the text around it."""
    where = path.relative_to(ROOT)
    return [
        f"{where}:{number}: {m[0]!r} in {line.strip()[:100]!r}"
        for number, line in lines
        for m in REFUSED.finditer(line)
        if not any(each in line for each in QUOTED)
    ]


def test_sources_use_the_words_of_the_glossary() -> None:
    found = [each for path in sources() for each in offenders(path, prose(path))]
    assert not found, "\n".join(found)


def test_pages_use_the_words_of_the_glossary() -> None:
    found = [each for path in pages() for each in offenders(path, iter(enumerate(path.read_text().splitlines(), 1)))]
    assert not found, "\n".join(found)

"""The errors of a pipeline file, each with its line and with a caret below the wrong key or value.

A `Document` lives while one file is read. It collects the problems, so that one try shows a user all problems.
"""

from __future__ import annotations

import contextlib
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from agent.domain.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Maximum number of problems in one error, so that a file of another kind does not fill the screen.
MAX_PROBLEMS = 20
# Maximum number of values of all actions together. A value of the defaults counts for each action.
MAX_REPEATED = 200_000
# Maximum number of characters of a message, so that a long value of the file does not fill the screen.
MAX_MESSAGE = 500
# Maximum number of characters that an error shows of a line of the file.
MAX_EXCERPT = 100
# Maximum number of characters that an error shows before the wrong key or value.
MAX_BEFORE = 60
NOT_SUPPORTED = "the agent has nothing like it"
OTHER_FILE = "this may be the file of another CI system (`sealci-agent init` writes an example)"
# Keys that other CI systems use in their files, and what to write in a pipeline file instead.
OTHERS_KEYS = {
    "image": "write configuration: {container: IMAGE}",
    "container": "write configuration: {container: IMAGE}",
    "depends_on": "write needs: [NAME]",
    "strategy": "write matrix: {NAME: [VALUE]}",
    "default": "write defaults: {KEY: VALUE}",
    "if": "write when: success, failure or always",
    **dict.fromkeys(("script", "scripts", "steps", "run"), "write commands: [COMMAND]"),
    **dict.fromkeys(("variables", "environment"), "write env: {NAME: VALUE}"),
    **dict.fromkeys(("cache", "allow_failure", "rules"), NOT_SUPPORTED),
    **dict.fromkeys(("on", "jobs", "stages", "stage", "pipeline", "workflow", "workflows"), OTHER_FILE),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a line of the file. `line` and `column` count from 0. `end` is the column after the last character.

    `end` is None for a part that goes on to the end of the line.
    """

    line: int
    column: int
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `message` names the file, the line, the key and what is allowed, on one line.

    `excerpt` is the line of the file, and a line with carets below. "" if the problem has no place.
    """

    message: str
    excerpt: str = ""
    place: Place = field(default=Place(0, 0))

    @property
    def text(self) -> str:
        return f"{self.message}\n{self.excerpt}" if self.excerpt else self.message


class PipelineFileError(AgentError):
    """A pipeline file is not valid. `problems` holds at most `MAX_PROBLEMS`, in the order of the file."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(problem.text for problem in problems))
        self.problems = problems


class Document:
    """The text of a file, its name in messages, and the problems that were found so far."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        self.text = text
        self.problems: dict[tuple[Place, str], Problem] = {}
        # The `id` of each YAML node that is a mapping with a key that is not allowed. If another key of this mapping is
        # missing, the key that is not allowed is perhaps the missing key, misspelt.
        self.misspelt: set[int] = set()
        # Number of values that defaults and matrices have repeated so far.
        self.repeated = 0

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def problem(self, place: Place, message: str) -> Problem:
        """Return a problem with the name of the file, the line and the excerpt."""
        if len(message) > MAX_MESSAGE:
            message = f"{message[:MAX_MESSAGE]}..."
        return Problem(f"{self.source}:{place.line + 1}: {message}", self.excerpt(place), place)

    def add(self, *problems: Problem) -> None:
        """Add problems to those that were found. A problem that was added before is not added twice.

        Raises:
            PipelineFileError: the number of problems has reached the limit.
        """
        for problem in problems:
            self.problems.setdefault((problem.place, problem.message), problem)
            if len(self.problems) >= MAX_PROBLEMS:
                raise self.error()

    def count_repeated(self, number: int) -> None:
        """Count values of one action. A short file with defaults and a matrix can repeat its values many times.

        Raises:
            PipelineFileError: the number of values has reached the limit.
        """
        self.repeated += number
        if self.repeated > MAX_REPEATED:
            message = f"has more than {MAX_REPEATED} values, counted with those that defaults and matrices repeat"
            raise PipelineFileError(*self.problems.values(), self.problem(Place(0, 0), message))

    def error(self) -> PipelineFileError:
        """Return the error with all problems, in the order of the file."""
        return PipelineFileError(
            *sorted(self.problems.values(), key=lambda each: (each.place.line, each.place.column))[:MAX_PROBLEMS]
        )

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Add the problems of an error that the `with` block raises, and continue after the block.

        Raises:
            PipelineFileError: the number of problems has reached the limit.
        """
        try:
            yield
        except PipelineFileError as error:
            self.add(*error.problems)

    def excerpt(self, place: Place) -> str:
        """Return the line of a place and a line with carets below the place. "" if the file has no such line."""
        if place.line >= len(self.lines) or not self.lines[place.line].strip():
            return ""
        line = self.lines[place.line].rstrip()
        start = min(place.column, len(line) - 1)
        first = max(0, start - MAX_BEFORE)
        shown = line[first : first + MAX_EXCERPT]
        end = min(len(line) if place.end is None else place.end, first + len(shown))
        marked = max(1, columns(line[start:end]))
        margin = f"{place.line + 1:>5} | "
        return f"{margin}{printable(shown)}\n{'|':>7} {' ' * columns(line[first:start])}{'^' * marked}"


def printable(text: str) -> str:
    """Return a text with a space for each tab and a question mark for each other unprintable character."""
    return "".join(letter if letter.isprintable() else " " if letter == "\t" else "?" for letter in text)


def columns(text: str) -> int:
    """Return the number of terminal columns that a text is wide."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )

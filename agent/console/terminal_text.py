"""Make text from outside safe for a terminal.

File names, messages, logs, folders and answers of servers may hold escape sequences that set the title, fill the
clipboard, clear the screen or fake a line. Every view passes each text through one function of this module. The
scheduler keeps the exact bytes of the log, so the functions may drop parts of a text. All is pure but `LineSplitter`,
which lives as long as its action.
"""

from __future__ import annotations

import codecs
import re

# Number of characters after which an unfinished line is shown, so that a log without line ends uses little memory.
MAX_UNFINISHED = 64 << 10
# An escape sequence with its parameters, after a 7-bit (ESC [) or 8-bit (U+009B) introducer. A string (title,
# clipboard) ends before the next introducer, so that the search stays linear in the length of the text.
SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
# A sequence that sets colours. The limit of 64 characters keeps each number small enough for the parser of rich.
COLOUR = re.compile(r"\x1b\[[0-9;:]{0,64}m")
# Characters that are removed: C0 except tab and newline, DEL, C1, U+2028 and U+2029, the controls of bidirectional
# text, and surrogates.
CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
CONTROL = re.compile(f"[{CONTROLS}]")
LINE_END = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]")
UNPRINTABLE = re.compile(f"[{CONTROLS}\t\n]")
ESCAPED = re.compile(f"[{CONTROLS}\t\n'\\\\]")
# Beginning of a command that a CI system obeys in the output of its jobs: `::` at the start of a line in GitHub Actions
# and `##[` or `##vso[` at any place in Azure Pipelines and older runners of GitHub.
CI_COMMAND = re.compile(r"^\s*:(?=:)|#(?=#(?:vso)?\[)", re.MULTILINE)
NAMED_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", "'": "\\'"}


def lines(text: str) -> list[str]:
    """Return the lines of a text without control characters and escape sequences. Tabs stay."""
    return [CONTROL.sub("", SEQUENCE.sub("", line)) for line in LINE_END.split(text)]


def one_line(text: str) -> str:
    """Return a text on one line, without control characters and escape sequences. Line ends become spaces."""
    return " ".join(lines(text))


def quoted(name: str) -> str:
    """Return a name as `ls` shows it: unchanged, or in the shell's `$'...'` if it holds control characters.

    The shell turns the quoted form into the name again.
    """
    if not UNPRINTABLE.search(name):
        return name
    return f"$'{ESCAPED.sub(escaped, name)}'"


def escaped(match: re.Match[str]) -> str:
    """Return the escape of one character in `$'...'`."""
    letter = match[0]
    return NAMED_ESCAPES.get(letter) or (f"\\x{ord(letter):02x}" if letter < "\x80" else f"\\u{ord(letter):04x}")


def log_line(line: str) -> str:
    """Return a line of a log. Of all escape sequences, only colours stay."""
    kept = SEQUENCE.sub(lambda match: match[0] if COLOUR.fullmatch(match[0]) else "", line)
    if "\x1b" not in kept:
        return CONTROL.sub("", kept).replace("\n", " ")
    # `kept` holds complete colour sequences. Any other ESC begins an incomplete sequence, which is removed with the
    # control characters.
    pieces = re.split(f"({COLOUR.pattern})", kept)
    cleaned = (piece if number % 2 else CONTROL.sub("", piece) for number, piece in enumerate(pieces))
    return "".join(cleaned).replace("\n", " ")


def without_ci_commands(text: str) -> str:
    """Return a text that GitHub Actions and Azure Pipelines show and do not obey. A space breaks each command."""
    return CI_COMMAND.sub(lambda match: f"{match[0]} ", text)


class LineSplitter:
    """Cuts the log of one action into lines. Its view or report owns it."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.unfinished = ""

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes of the log and return the lines that they complete."""
        text = self.unfinished + self.decoder.decode(data)
        *lines, self.unfinished = text.split("\n")
        if len(self.unfinished) > MAX_UNFINISHED:
            lines.append(self.unfinished)
            self.unfinished = ""
        return [last_state(line) for line in lines]

    def flush(self) -> list[str]:
        """Return the unfinished line, or an empty list if there is none."""
        rest = self.unfinished + self.decoder.decode(b"", final=True)
        self.decoder.reset()
        self.unfinished = ""
        return [last_state(rest)] if rest else []


def last_state(line: str) -> str:
    """Return what a terminal shows of a line in the end: the text after the last carriage return.

    Of its escape sequences, only colours stay.
    """
    return log_line(line.rstrip("\r").rpartition("\r")[2])

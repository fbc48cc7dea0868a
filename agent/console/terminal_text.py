"""Remove escape sequences and control characters from text before a terminal shows the text.

Names of files and folders, messages, logs and answers of servers can contain escape sequences that set the title, fill
the clipboard, clear the screen or fake a line. Every view passes each text through one function of this module. The
scheduler stores the exact bytes of the log, so it is safe that the functions drop parts of a text. All functions are
pure. A `LineSplitter` has state and lives as long as its action.
"""

from __future__ import annotations

import codecs
import re

# Number of characters after which an unfinished line is shown, so that a log without line ends uses little memory.
MAX_UNFINISHED = 64 << 10
# An escape sequence with its parameters. It begins with an introducer of 7 bits (ESC [) or 8 bits (U+009B). If a
# sequence sets a string (the title or the clipboard), the match ends before the next introducer at the latest. The time
# of the search is therefore linear in the length of the text.
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
    """Return a name as `ls` shows it: unchanged, or quoted as `$'...'` if the name has control characters.

    A shell reads the quoted form as the original name.
    """
    if not UNPRINTABLE.search(name):
        return name
    return f"$'{ESCAPED.sub(escaped, name)}'"


def escaped(match: re.Match[str]) -> str:
    """Return the escape sequence that stands for one character between the quotes of `$'...'`."""
    letter = match[0]
    return NAMED_ESCAPES.get(letter) or (f"\\x{ord(letter):02x}" if letter < "\x80" else f"\\u{ord(letter):04x}")


def log_line(line: str) -> str:
    """Return a line of a log without control characters and without escape sequences, except those that set colours."""
    kept = SEQUENCE.sub(lambda match: match[0] if COLOUR.fullmatch(match[0]) else "", line)
    if "\x1b" not in kept:
        return CONTROL.sub("", kept).replace("\n", " ")
    # `kept` holds complete colour sequences. Any other ESC begins an incomplete sequence, which is removed with the
    # control characters.
    pieces = re.split(f"({COLOUR.pattern})", kept)
    cleaned = (piece if number % 2 else CONTROL.sub("", piece) for number, piece in enumerate(pieces))
    return "".join(cleaned).replace("\n", " ")


def without_ci_commands(text: str) -> str:
    """Return a text that contains no command of GitHub Actions or Azure Pipelines.

    A space is put into each command, so that the CI system shows the command and does not execute it.
    """
    return CI_COMMAND.sub(lambda match: f"{match[0]} ", text)


class LineSplitter:
    """Cuts the log of one action into lines. The view or report that shows the action owns the splitter."""

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
    """Return what a terminal shows after it has printed the whole line: the text after the last carriage return.

    Escape sequences are removed, except those that set colours.
    """
    return log_line(line.rstrip("\r").rpartition("\r")[2])

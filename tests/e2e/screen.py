"""A program on a pseudo-terminal, and the text that a user would see.

A Screen lives as long as its program. A terminal emulator interprets every byte, so that a test reads the text without
control codes. The text includes the lines that have scrolled off the screen.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time
from typing import TYPE_CHECKING

import pyte

if TYPE_CHECKING:
    from collections.abc import Sequence

COLOUR = re.compile(rb"\x1b\[[0-9;]*?(?:3[0-7]|9[0-7]|38)[;m]")


# Environment variables of the terminal or CI system that runs the tests. The program must not inherit them.
CALLERS_VARIABLES = frozenset({"CI", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR"})


class Screen:
    """One program on a pseudo-terminal.

    The program gets the environment variables in `env` and `also`. A variable in `also` overrides a variable in `env`.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: dict[str, str],
        *,
        also: dict[str, str] | None = None,
        columns: int = 120,
        lines: int = 40,
        cwd: str | None = None,
    ) -> None:
        self.display = pyte.HistoryScreen(columns, lines, history=2000)
        self.stream = pyte.ByteStream(self.display)
        self.raw = bytearray()
        self.changed = threading.Condition()
        self.open = True
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.master = master
        plain = {name: value for name, value in env.items() if name not in CALLERS_VARIABLES}
        self.process = subprocess.Popen(
            list(command),
            env={**plain, "TERM": "xterm-256color", **(also or {})},
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Make the pseudo-terminal the controlling terminal of the program, so that Ctrl-C sends SIGINT to the
            # program.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )
        os.close(slave)
        self.reader = threading.Thread(target=self.read, name="screen", daemon=True)
        self.reader.start()

    def read(self) -> None:
        """Feed the program's output to the terminal emulator until the program closes the terminal."""
        while True:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:
                data = b""
            with self.changed:
                if not data:
                    self.open = False
                else:
                    self.raw += data
                    self.stream.feed(data)
                self.changed.notify_all()
            if not data:
                return

    @property
    def text(self) -> str:
        """Return the text of the screen, with the lines that have scrolled off its upper end."""
        with self.changed:
            above = ["".join(line[x].data for x in range(self.display.columns)) for line in self.display.history.top]
            return "\n".join(line.rstrip() for line in [*above, *self.display.display]).rstrip()

    @property
    def colours(self) -> bool:
        """Return whether the program has ever written colours."""
        return bool(COLOUR.search(bytes(self.raw)))

    def type(self, text: str) -> None:
        """Send text to the program as if a user typed it."""
        os.write(self.master, text.encode())

    def until(self, *parts: str, timeout: float = 60) -> str:
        """Wait until the screen shows all of `parts` at the same time. Return the text of the screen."""
        deadline = time.monotonic() + timeout
        while True:
            shown = self.text
            unfolded = shown.replace("\n", "")  # A long line continues on the next line of the screen.
            if all(part in shown or part in unfolded for part in parts):
                return shown
            with self.changed:
                left = deadline - time.monotonic()
                assert left > 0, f"{parts} is not on the screen:\n{shown}"
                assert self.open, f"the program ended and {parts} is not on the screen:\n{shown}"
                self.changed.wait(min(left, 1.0))

    def finish(self, timeout: float = 120) -> tuple[int, str]:
        """Wait for the end of the program. Return the exit code and the text of the screen."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            print(self.text)
            raise
        finally:
            self.close()
        return code, self.text

    def close(self) -> None:
        """Kill the program if it runs, and close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.reader.join(10)
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

"""Print progress for the user, and run child processes.

Progress goes to stderr, one line per step with its duration. stdout contains only the result of a subcommand, such as a
path, so that `KUBECONFIG=$(... kubeconfig)` works. `hush` is set while a progress line is redrawn, because other output
would break this line.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Seconds between two progress lines of a long command.
PROGRESS_SECONDS = 10
# While this event is set, steps and long commands print nothing.
hush = threading.Event()
# The long-running commands that the threads of this process have started and that still run.
long_commands: set[subprocess.Popen[bytes]] = set()


class CommandFailed(Exception):
    """The user's command cannot continue. `main` prints the cause, which is the error's text, and exits with code 1."""


def report(line: str) -> None:
    """Print one line for the user on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def step(description: str) -> Iterator[None]:
    """Report the start of a step, and its duration when the block ends without an error."""
    report_step(f"  {description} ...")
    began = time.monotonic()
    yield
    report_step(f"  {description}: {time.monotonic() - began:.1f} s")


def report_step(line: str) -> None:
    """Print one line about a step, except while `hush` is set."""
    if not hush.is_set():
        report(line)


def terminate_long_commands() -> None:
    """Ask the long commands of all threads to end. Their `run_logged` then raises CommandFailed."""
    for process in list(long_commands):
        process.terminate()


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    seconds: float = 120,
) -> str:
    """Run a short command and return its stdout.

    Raise CommandFailed if the program is not installed, if it exits with another code than 0 (with the end of its
    stderr) or if it runs longer than `seconds`.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd=cwd, env=env, input=stdin, timeout=seconds, text=True, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise CommandFailed(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{' '.join(words[:4])} did not end within {seconds:.0f} s") from None
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(words[:4])} failed ({done.returncode}): {tail(done.stderr or done.stdout)}")
    return done.stdout


def run_logged(
    command: Sequence[str | Path], log: Path, description: str, *, cwd: Path, env: Mapping[str, str]
) -> None:
    """Run a long command with its output in the file `log`, and report every ten seconds that it still runs."""
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen([str(word) for word in command], cwd=cwd, env=env, stdout=output, stderr=output)
        long_commands.add(process)
        try:
            while True:
                try:
                    code = process.wait(PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    report_step(f"    {description}: {time.monotonic() - began:.0f} s so far")
        except BaseException:
            # Also end the process on Ctrl-C. If a build outlived this command, the build would write to a cache that is
            # no longer locked.
            process.terminate()
            process.wait()
            raise
        finally:
            long_commands.discard(process)
    if code != 0:
        end = tail(log.read_text("utf-8", "replace"))
        raise CommandFailed(f"{description} failed ({code}). The whole output is in {log}. Its end: {end}")


def tail(text: str, lines: int = 6) -> str:
    """Return the last lines of an output, where most programs print their error."""
    return "\n    ".join(text.strip().splitlines()[-lines:])

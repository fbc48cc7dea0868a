"""What a person sees: one line per step, with how long it took, on stderr.

stdout belongs to answers (a path, a status), so `KUBECONFIG=$(... kubeconfig)` works. A `CommandFailed` is a
sentence for a person: it ends the command with exit code 1 and without a traceback.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class CommandFailed(Exception):
    """The command cannot go on; the text says why and what to do, in one sentence."""


def report(line: str) -> None:
    """One line for the person who waits."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Announces `what`, and says how many seconds it took once it is done."""
    report(f"  {what} ...")
    began = time.monotonic()
    yield
    report(f"  {what}: {time.monotonic() - began:.1f} s")


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    seconds: float = 120,
) -> str:
    """Runs a short command and returns its stdout. Refuses with the end of its stderr when it fails."""
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


def run_logged(command: Sequence[str | Path], log: Path, what: str, *, cwd: Path, env: Mapping[str, str]) -> None:
    """Runs a long command with its output in `log`, and says every ten seconds that it still goes on."""
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen([str(word) for word in command], cwd=cwd, env=env, stdout=output, stderr=output)
        try:
            while True:
                try:
                    code = process.wait(10)
                    break
                except subprocess.TimeoutExpired:
                    report(f"    {what}: {time.monotonic() - began:.0f} s so far")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code != 0:
        end = tail(log.read_text("utf-8", "replace"))
        raise CommandFailed(f"{what} failed ({code}), the whole output is in {log}: {end}")


def tail(text: str, lines: int = 6) -> str:
    """The last lines, where programs say what went wrong."""
    return "\n    ".join(text.strip().splitlines()[-lines:])

"""Short actions of every kind, with the expected result of each: the outcome, the log and the files.

A seed determines everything. The expected result is computed here and never comes from an agent.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from tests.e2e.lab import BUSYBOX, spelled

KINDS = {"success": 8, "failure": 4, "files": 3, "secret": 3, "cancel": 2}
COUNT = "i={first}; while [ $i -lt {last} ]; do i=$((i+1)); echo {name} line $i; done"
NAME = "a"
MASKED = "***"


@dataclass(frozen=True)
class PlannedAction:
    """One action and its expected result.

    `written` is the log that the commands write. An action of the kind "cancel" is cancelled at once if `early` is
    true, otherwise after it has written its log.
    """

    kind: str
    run: str
    commands: tuple[str, ...]
    written: bytes
    files: dict[str, bytes] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    early: bool = False

    @property
    def text(self) -> str:
        """Return the text of a pipeline file with this action only."""
        action = {
            "image": BUSYBOX,
            "commands": list(self.commands),
            "artifacts": {"paths": ["out", "deep"]} if self.files else {"when": "never"},
        }
        if self.secrets:
            action["secrets"] = list(self.secrets)
        return json.dumps({"name": self.run, "actions": {NAME: spelled(action)}})

    @property
    def outcome(self) -> tuple[str, str, int | None]:
        """Return the result, reason and exit code that the outcome must have.

        The exit code of a cancelled action is None, because no test checks it.
        """
        if self.kind == "cancel":
            return "cancelled", "CANCELLED", None
        return ("failed", "COMMAND_FAILED", 7) if self.kind == "failure" else ("succeeded", "", 0)


def workload(seed: int, count: int, secret: str) -> list[PlannedAction]:
    """Return `count` planned actions, which `seed` determines. The value of every secret begins with `secret`."""
    rng = random.Random(seed)
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=max(count - len(KINDS), 0)) + list(KINDS)
    rng.shuffle(kinds)
    return [random_action(rng, kind, f"run{number:06}", secret) for number, kind in enumerate(kinds[:count])]


def random_action(rng: random.Random, kind: str, run: str, secret: str) -> PlannedAction:
    """Return one planned action of the kind `kind`, with random content.

    The value of its secret begins with `secret`.
    """
    lines, pause = rng.randint(2, 300), rng.choice((0, 0, 0.2, 1, 2))
    half = lines // 2
    commands = [
        COUNT.format(first=0, last=half, name=run),
        f"sleep {pause}",
        COUNT.format(first=half, last=lines, name=run),
    ]
    written = "".join(f"{run} line {number}\n" for number in range(1, lines + 1))
    files: dict[str, bytes] = {}
    secrets: dict[str, str] = {}
    if kind == "failure":
        commands.append("(exit 7)")
    elif kind == "cancel":
        commands.append("sleep 600")
    elif kind == "secret":
        secrets["TOKEN"] = secret + "".join(rng.choices("0123456789abcdef", k=16))
        commands.append('echo "the token is $TOKEN."')
        written += f"the token is {MASKED}.\n"
    elif kind == "files":
        size = rng.randint(1, 20_000)
        commands += [f"seq 1 {size} > out", "mkdir deep", f"echo {run} > deep/small"]
        files["out"] = "".join(f"{number}\n" for number in range(1, size + 1)).encode()
        files["deep/small"] = f"{run}\n".encode()
    return PlannedAction(kind, run, tuple(commands), written.encode(), files, secrets, early=rng.random() < 0.3)

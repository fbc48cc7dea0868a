"""Make the pictures of README and docs from real runs: `make pictures`, on a running cluster.

`sealci-agent run` runs on a pseudo-terminal, a terminal emulator renders its output, and the screen becomes an SVG. A
browser takes the pictures of the status page of a real agent. No picture is drawn by hand, so that none shows a feature
that does not exist.
"""

from __future__ import annotations

import io
import re
import secrets
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

from tests.e2e import browser, kube
from tests.e2e.lab import BUSYBOX, COMMAND, Lab, until
from tests.e2e.screen import Screen

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "pictures"
# Number of columns of the terminal.
WIDTH = 100
FONTS = re.compile(r"@font-face\s*\{.*?\}", re.S)
# Colours that pyte and rich name differently.
RICH_COLOURS = {"brown": "yellow", "brightbrown": "bright_yellow"}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    namespace = f"pictures-{secrets.token_hex(3)}"
    kube.kubectl("create", "namespace", namespace)
    try:
        until(lambda: kube.kubectl("get", "sa", "default", "-n", namespace, check=False), "no ServiceAccount")
        with tempfile.TemporaryDirectory() as folder:
            take_terminal_pictures(namespace, Path(folder))
            take_page_pictures(namespace, Path(folder))
    finally:
        kube.kubectl("delete", "namespace", namespace, "--wait=false")


def take_terminal_pictures(namespace: str, folder: Path) -> None:
    """Take one picture in the middle of a run and one at the end of the run."""
    file = Path(__file__).with_name("pipeline.yaml")
    command = [*COMMAND, "run", str(file), "--namespace", namespace, "--artifacts", "out"]
    command += ["--set", "policy.default_cpu=5m"]
    screen = Screen(command, kube.environment(), columns=WIDTH, lines=46, cwd=str(folder))
    # Wait for the middle of the run: one action has ended, two run, and one of the two prints its log.
    screen.until("✔ build", "unit  commands", "lint  commands", "test_4 ... ok", timeout=120)
    save(screen, "run-tree", "sealci-agent run pipeline.yaml")
    code, _ = screen.finish()
    if code != 1:
        raise SystemExit(f"the run ended with {code}:\n{screen.text}")
    save(screen, "run-failure", "sealci-agent run pipeline.yaml --artifacts out")


def save(screen: Screen, name: str, title: str) -> None:
    """Write the content of a screen as NAME.svg."""
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor")
    with screen.changed:
        rows = [screen.display.buffer[number] for number in range(screen.display.lines)]
        lines = [styled_line(row, screen.display.columns) for row in rows]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    for each in lines:
        console.print(each)
    picture = console.export_svg(title=title)
    # The references to fonts are removed, because a viewer of the page must not load fonts from another host.
    (FOLDER / f"{name}.svg").write_text(FONTS.sub("", picture), encoding="utf-8")


def styled_line(row: Any, columns: int) -> Text:
    """Convert one row of the screen to a line with styles."""
    text = Text(no_wrap=True)
    for column in range(columns):
        cell = row[column]
        colour = RICH_COLOURS.get(cell.fg, cell.fg.replace("bright", "bright_"))
        colour = f"#{colour}" if re.fullmatch("[0-9a-f]{6}", colour) else colour
        text.append(cell.data, Style(color=None if colour == "default" else colour, bold=cell.bold))
    text.rstrip()
    return text


def take_page_pictures(namespace: str, folder: Path) -> None:
    """Take a picture of the status page at the width of a phone and one at the width of a desktop."""
    lab = Lab(namespace, folder)
    try:
        agent = lab.agent()
        # The agent gets three actions that end and two that keep running, so that every part of the page has content.
        quick: dict[str, Any] = {"image": BUSYBOX, "commands": ["true"]}
        broken = {"image": BUSYBOX, "commands": ["exit 3"]}
        lab.run({"build": quick, "unit": quick, "lint": broken})
        running = lab.start({name: {"image": BUSYBOX, "commands": ["echo on; sleep 600"]} for name in ("e2e", "docs")})
        for name in ("e2e", "docs"):
            running.until_running(name, "on")
        url = f"http://127.0.0.1:{agent.port}/"
        browser.picture(folder / "profile", url, FOLDER / "status-phone.png", width=500, height=1150)
        browser.picture(folder / "profile", url, FOLDER / "status.png", width=1000, height=760)
        running.cancel()
        running.wait()
    finally:
        lab.close()


if __name__ == "__main__":
    main()

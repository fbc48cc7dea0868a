"""Print the results of a benchmark run and write them into files.

`bench.json` is for programs. `bench.md` and `bench.svg` are the table and the picture of `docs/performance.md`.
"""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench import machine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.bench.rows import Row

FONTS = re.compile(r"@font-face\s*\{.*?\}", re.S)
MET = {True: Text("met", "green"), False: Text("missed", "red"), None: Text("")}
WIDTH = 150


def table(rows: Sequence[Row]) -> Table:
    """Return a table for the terminal with all rows of the benchmark."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("what", "target", "floor", "measured", "unit", "spread", "ratio", "", "note"):
        found.add_column(name, justify="left" if name in ("what", "unit", "", "note") else "right")
    for each in rows:
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        floor = "" if each.floor is None else number(each.floor)
        spread = f"{each.spread:.0%}" if each.spread else ""
        cells = (each.what, each.target, floor, number(each.measured), each.unit, spread, ratio)
        found.add_row(*cells, MET[each.met], each.note)
    return found


def number(value: float) -> str:
    """Return a number as text with about three digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def write(rows: Sequence[Row], seconds: float, folder: Path) -> None:
    """Write `bench.json`, `bench.md` and `bench.svg` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine.name(),
        "seconds": round(seconds),
        "rows": [each.as_json() for each in rows],
    }
    (folder / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(markdown(rows), encoding="utf-8")
    (folder / "bench.svg").write_text(picture([each for each in rows if each.ratio is not None]), encoding="utf-8")


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows of the benchmark as a table of Markdown."""
    lines = ["| what | target | floor | measured | ratio | | |", "|---|---|---|---|---|---|---|"]
    for each in rows:
        floor = "" if each.floor is None else f"{number(each.floor)} {each.unit}"
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        met = {True: "met", False: "**missed**", None: ""}[each.met]
        measured = f"{number(each.measured)} {each.unit}".rstrip()
        lines.append(f"| {' | '.join([each.what, each.target, floor, measured, ratio, met, each.note])} |")
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[Row]) -> str:
    """Return an SVG picture with a bar for each row that has a baseline (`floor`).

    The length of a bar is the row's ratio to the baseline. The bar of a value equal to the baseline has the length 1.
    """
    top = max((each.ratio or 0.0 for each in rows), default=1.0)
    plot = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("against the floor", "target", "ratio", f"0 to {top:.1f}"):
        plot.add_column(name)
    for each in rows:
        colour = {True: "green", False: "red", None: "bright_blue"}[each.met]
        bar = Bar(size=top, begin=0, end=each.ratio or 0.0, width=50, color=colour)
        plot.add_row(each.what, each.target, f"{each.ratio:.2f}", bar)
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor")
    console.print(plot)
    # A viewer of the picture must not load fonts from another host, so the references to fonts are removed.
    return FONTS.sub("", console.export_svg(title="make bench"))

"""`make chart`: writes what in the chart follows from something else, so that it cannot drift.

The lower half of values.yaml follows from `agent/settings.py`; values.schema.json from both halves of values.yaml and
from that model; the README's table from the comments in values.yaml. A unit test holds what is committed against what
this would write. Lives as long as the command.
"""

from __future__ import annotations

from deploy.dev.chart import generated


def main() -> None:
    """Write the three files."""
    for path, text in generated.files().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()

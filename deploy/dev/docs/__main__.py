"""Write the generated pages of the documentation: `make docs`.

A unit test compares the committed pages with the text that this command would write. So a page cannot be outdated.
"""

from __future__ import annotations

from pathlib import Path

from agent.pipeline import schema
from deploy.dev.docs import metrics_page, settings_page

DOCS = Path(__file__).resolve().parents[3] / "docs"


def pages() -> dict[Path, str]:
    """Return the text of every generated page, by the path of the page."""
    return {
        DOCS / "settings.md": settings_page.text(),
        DOCS / "metrics.md": metrics_page.text(),
        DOCS / "pipeline.schema.json": schema.text(),
    }


def main() -> None:
    """Write the pages whose text has changed, and print their names."""
    for path, text in pages().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"wrote docs/{path.name}")


if __name__ == "__main__":
    main()

"""The generated pages of the documentation are current."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from agent.settings import Settings
from deploy.dev.docs.__main__ import DOCS, pages

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_the_committed_page_is_what_make_docs_writes(path: Path) -> None:
    assert path.read_text("utf-8") == pages()[path], f"{path.name} is not current: make docs"


def keys(section: BaseModel, prefix: str = "") -> set[str]:
    """Return the keys of all settings in a section. A mapping counts as one setting. A subsection does not count."""
    found = set()
    for name, value in section:
        if isinstance(value, BaseModel):
            found |= keys(value, f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def test_the_settings_page_has_a_row_with_a_description_for_every_setting() -> None:
    text = (DOCS / "settings.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z_.]+)` \| `SEALCI_[A-Z_]+` \| .+ \| `.+` \| \S.* \|$", text, re.MULTILINE)
    assert sorted(rows) == sorted(keys(Settings()))

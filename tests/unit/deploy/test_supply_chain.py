"""What the project takes from others: actions of the CI workflow and packages of the image, named by their content."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# A tag can be moved to other code. The comment names the release for people and for tools that update the line.
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+")


def test_actions_of_the_workflow_are_named_by_their_commit() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    uses = [line.strip().removeprefix("- ") for line in text.splitlines() if "uses:" in line]
    assert len(uses) > 5
    assert [line for line in uses if not PINNED.fullmatch(line)] == []
    assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE)


def test_packages_of_the_image_are_named_by_their_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", lock, flags=re.MULTILINE).strip())
    assert len(entries) > 10
    assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "--require-hashes --only-binary :all:" in dockerfile
    assert re.search(r"^USER 65532:65532$", dockerfile, re.MULTILINE)

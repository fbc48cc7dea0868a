"""The examples of the documentation run. One pipeline contains the actions of all examples, to save time."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.json import Object

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
OPTIONS = ("--output", "plain", "--set", "policy.default_cpu=5m", "--set", "environment.grace=2s")


def actions() -> Iterator[tuple[str, Object]]:
    """Yield each action of all examples with a unique name, and with an image that the local cluster has."""
    for file in sorted(EXAMPLES.glob("*.yaml")):
        # This loader keeps the text of each value, as the agent does: 1.10 stays 1.10.
        example = yaml.load(file.read_text("utf-8"), yaml.BaseLoader)  # noqa: S506 - it makes texts only
        single = "configuration" in example
        for name, action in ({file.stem: example} if single else example["actions"]).items():
            image = {"configuration": {"container": BUSYBOX}}
            needs = {"needs": [f"{file.stem}-{need}" for need in action["needs"]]} if "needs" in action else {}
            if "inputs" in action:
                needs["inputs"] = [each | {"from": f"{file.stem}-{each['from']}"} for each in action["inputs"]]
            rest = {key: value for key, value in action.items() if key != "name"}
            yield name if single else f"{file.stem}-{name}", {**rest, **image, **needs}


def test_the_examples_of_the_documentation_run(namespace: str, tmp_path: Path) -> None:
    file, out = tmp_path / "examples.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({"actions": dict(actions())}))
    done = subprocess.run(
        [*COMMAND, "run", str(file), "--namespace", namespace, "--artifacts", str(out), *OPTIONS],
        env=kube.environment() | {"TOKEN": "hunter2-hunter2"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "hunter2" not in done.stdout
    assert "failed, trying again in 1 s" in done.stdout
    assert "it works" in done.stdout, "an action runs what another one has built"
    kept = sorted(path.relative_to(out).as_posix() for path in out.glob("*/*/*") if path.is_file())
    assert kept == ["artifacts/dist/result.txt", "inputs-build/dist/tool"]

"""Test the supply chain.

Dockerfiles name base images by digest, workflows name actions by commit, and the bill of materials of the image is
complete.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import yaml

from deploy.dev.cluster.builds import images
from deploy.dev.cluster.settings import REPOSITORY
from deploy.dev.supply import bom, image_content

DOCKERFILES = ("deploy/Dockerfile", "deploy/images/Dockerfile")
STATUS = """Package: git
Status: install ok installed
Architecture: amd64
Version: 1:2.39.5-0+deb12u3

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
METADATA = "Metadata-Version: 2.4\nName: {}\nVersion: 1.2\nLicense-Expression: MIT\n\nDescription\n"
SITE = "opt/sealci/lib/python3.11/site-packages"


def instructions(dockerfile: str) -> list[str]:
    """Return the instructions of a Dockerfile, without comments and with joined lines."""
    text = re.sub(r"^\s*#.*\n", "", (REPOSITORY / dockerfile).read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_a_pulled_base_image_is_named_by_its_digest(dockerfile: str) -> None:
    lines = instructions(dockerfile)
    arguments = dict(
        line.removeprefix("ARG ").split("=", 1) for line in lines if line.startswith("ARG ") and "=" in line
    )
    stages: set[str] = {"scratch"}
    for line in lines:
        if not line.startswith("FROM "):
            continue
        base, _, stage = line.removeprefix("FROM ").partition(" AS ")
        if base not in stages:
            assert re.search(r"@sha256:[0-9a-f]{64}$", arguments[base.strip("${}")]), line
        stages.add(stage)


def test_every_package_of_the_image_has_a_hash() -> None:
    installs = [line for line in instructions("deploy/Dockerfile") if "pip --python" in line]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes --only-binary :all:" in " ".join(line.split()) or (
            "--no-deps" in line and "--no-index" in line
        )


def test_the_last_stage_is_one_layer_without_tools_and_runs_as_a_user() -> None:
    lines = instructions("deploy/Dockerfile")
    last = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert last[0] == "FROM scratch"
    assert not [line for line in last if line.startswith("RUN")]
    assert "USER 65532:65532" in last


def test_the_image_depends_on_every_file_that_its_build_copies() -> None:
    recipe = images.agent_recipe()
    ignored = (REPOSITORY / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    context = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert {str(path.relative_to(REPOSITORY)) for path in recipe.inputs} == context | {"deploy/Dockerfile"}


def test_the_cluster_has_the_image_that_the_chart_asks_for() -> None:
    values = yaml.safe_load((REPOSITORY / "charts/sealci-agent/values.yaml").read_text())["image"]
    version = yaml.safe_load((REPOSITORY / "charts/sealci-agent/Chart.yaml").read_text())["appVersion"]
    assert (values["registry"], values["tag"]) == ("", "")
    assert images.chart_image() == f"docker.io/{values['repository']}:{version}"


def test_workflows_name_actions_by_commit() -> None:
    uses = [
        step["uses"]
        for path in (REPOSITORY / ".github/workflows").glob("*.yml")
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        if "uses" in step
    ]
    assert uses
    assert [each for each in uses if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", each)] == []


def archive(folder: Path, *layers: dict[str, str]) -> Path:
    """Return a docker archive of an image with these layers. A layer maps paths to contents."""
    target = folder / "image.tar"
    with tarfile.open(target, "w") as image:
        for number, layer in enumerate(layers):
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w") as files:
                for path, text in layer.items():
                    add(files, path, text.encode(), 0o4755 if path.endswith("/su") else 0o644)
            add(image, f"{number}.tar", data.getvalue())
        add(image, "manifest.json", json.dumps([{"Layers": [f"{n}.tar" for n in range(len(layers))]}]).encode())
    return target


def add(files: tarfile.TarFile, path: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(data), mode
    files.addfile(entry, io.BytesIO(data))


def test_the_content_of_an_image_is_read_from_its_layers(tmp_path: Path) -> None:
    below = {"var/lib/dpkg/status": STATUS, f"{SITE}/old-1.dist-info/METADATA": METADATA.format("old"), "bin/su": ""}
    above = {f"{SITE}/.wh.old-1.dist-info": "", f"./{SITE}/new-1.dist-info/METADATA": METADATA.format("new")}
    content = image_content.read(archive(tmp_path, below, above))
    assert [(each.kind, each.name, each.version) for each in content.packages] == [
        ("deb", "git", "1:2.39.5-0+deb12u3"),
        ("pypi", "new", "1.2"),
    ]
    assert content.modes["bin/su"] == 0o4755
    assert not [path for path in content.modes if "old" in path]


def test_a_bill_of_materials_names_every_package(tmp_path: Path) -> None:
    packages = [
        image_content.Package("deb", "git", "1:2.39.5-0+deb12u3", architecture="amd64"),
        image_content.Package("pypi", "pydantic_core", "2.50.4", "MIT"),
        image_content.Package("pypi", "sealci-agent", "0.1.0", "Apache-2.0"),
    ]
    bom.write(image_content.Content(packages, {}), tmp_path / "build" / "bom.json")
    written = json.loads((tmp_path / "build" / "bom.json").read_text())
    assert (written["bomFormat"], written["specVersion"]) == ("CycloneDX", "1.6")
    assert written["metadata"]["component"]["name"] == "sealci-agent"
    assert [each["purl"] for each in written["components"]] == [
        "pkg:deb/debian/git@1:2.39.5-0%2Bdeb12u3?arch=amd64",
        "pkg:pypi/pydantic-core@2.50.4",
    ]

"""A published Python package is cloned, tested and built in a Debian image, and the built package installs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import yaml

from deploy.demo import source
from tests.e2e import kube

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

PIPELINE = Path(source.__file__).parent / "pipeline.yaml"


def test_a_published_package_is_built(own_lab: Lab, tmp_path: Path) -> None:
    source.make_repository(tmp_path / "repositories")
    own_lab.agent(policy={"repository_schemes": ["git"]})
    with source.serve_git(tmp_path / "repositories", kube.provider("address")) as url:
        asked = yaml.safe_load(PIPELINE.read_text().replace("{url}", url))["actions"]
        actions = {
            name: {"image": action.pop("configuration")["container"], **action} for name, action in asked.items()
        }
        reports = own_lab.run(actions, timeout=280)
    build = reports["build"]
    assert build.outcome == ("succeeded", None, 0), build
    assert reports["verify"].outcome == ("succeeded", None, 0), reports["verify"]
    wheel = next(path for name, path in build.files.items() if name.endswith(".whl"))
    assert set(build.files) == {f"dist/{wheel.name}", "report.xml"}
    suite = ElementTree.parse(build.files["report.xml"]).getroot().find("testsuite")  # noqa: S314 - the report of our own build
    assert suite is not None
    assert int(suite.attrib["tests"]) > 50
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "0")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(tmp_path / "site"), str(wheel)], check=True)
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import h11; print(h11.__version__)"
    done = subprocess.run([sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == source.VERSION

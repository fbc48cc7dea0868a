"""An action builds an image with buildah and pushes it to a registry. The next action runs the image.

The namespace enforces the Pod Security Standard `baseline`. The class is that of docs/building-images.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from tests.e2e.lab import new_namespace, open_lab
from tests.e2e.observer import IMAGE_BUILD
from tests.e2e.registry import storing
from tests.e2e.release import CHART

if TYPE_CHECKING:
    from pathlib import Path

BUILDAH = "localhost/sealci-test/buildah:1"
# The names of programs become links, so that the image has a shell.
BASE = """
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
"""
APP = """
FROM REGISTRY/base:1 AS compiled
RUN mkdir /out && echo "made by $(id -u) in $(pwd)" > /out/made
FROM REGISTRY/base:1
COPY --from=compiled /out /srv
RUN mkdir -p /etc && echo 'app:x:1234:1234::/srv:/bin/sh' > /etc/passwd && chown -R 1234:1234 /srv
USER 1234
"""


def write(path: str, text: str) -> str:
    """Return a command that writes a file."""
    return f"cat > {path} <<'END'\n{text}\nEND"


def image_build_class() -> dict[str, Any]:
    """Return the class of the documentation, for the test's image and with less memory."""
    values = yaml.safe_load((CHART / "ci" / "classes-values.yaml").read_text("utf-8"))
    found: dict[str, Any] = values["environment"]["classes"][IMAGE_BUILD]
    return found | {"images": [BUILDAH], "default_memory": "200Mi"}


def test_an_action_builds_and_pushes_an_image_that_the_next_action_runs(tmp_path: Path) -> None:
    with (
        storing(tmp_path) as registry,
        new_namespace("pod-security.kubernetes.io/enforce=baseline") as namespace,
        open_lab(namespace, tmp_path, environment={"classes": {IMAGE_BUILD: image_build_class()}}) as lab,
    ):
        lab.agent()
        plain, look = "--tls-verify=false", "id -u; ls -ln /srv; cat /srv/made"
        build = [
            "mkdir base app && cp /bin/busybox base/",
            write("base/Dockerfile", BASE),
            write("app/Dockerfile", APP.replace("REGISTRY", registry)),
            f"buildah build --tag {registry}/base:1 base && buildah push {plain} {registry}/base:1",
            "buildah rmi --all",
            f"buildah build {plain} --tag {registry}/app:1 app && buildah push {plain} {registry}/app:1",
        ]
        reports = lab.run(
            {
                "build": {"image": BUILDAH, "class": IMAGE_BUILD, "commands": build, "artifacts": "none"},
                "run": {"image": f"{registry}/app:1", "needs": ["build"], "commands": [look]},
                "without-class": {"image": BUILDAH, "commands": ["buildah unshare true"]},
            }
        )
        assert reports["build"].outcome == ("succeeded", None, 0), str(reports["build"])
        assert reports["run"].outcome == ("succeeded", None, 0), str(reports["run"])
        uid, _, listed, made = reports["run"].text.splitlines()
        assert (uid, listed.split()[2:4], made) == ("1234", ["1234", "1234"], "made by 0 in /")
        # Without the class, the seccomp profile of the container runtime forbids what a build needs.
        assert reports["without-class"].outcome == ("failed", "COMMAND_FAILED", 1), str(reports["without-class"])
        assert "unshare(CLONE_NEWUSER): Operation not permitted" in reports["without-class"].text

        pods = {pod["metadata"]["labels"].get("sealci.dev/class", ""): pod["spec"] for pod in lab.observer.states}
        assert pods[IMAGE_BUILD]["hostUsers"] is False
        built_in = pods[IMAGE_BUILD]["containers"]
        profiles = {each["name"]: each["securityContext"].get("seccompProfile") for each in built_in}
        assert profiles == {"helper": {"type": "RuntimeDefault"}, "action": None}

"""The agent's image as pods run it: no setuid program, no package manager, and the programs that the agent needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.e2e import kube
from tests.e2e.release import IMAGE

if TYPE_CHECKING:
    from agent.domain.json import Object

# Programs (TOOLS) and Python modules (MODULES) that install or build packages. The agent's image must contain none of
# them.
TOOLS = (
    "pip", "pip3", "easy_install", "uv", "conda", "apt", "apt-get", "apt-cache", "dpkg", "dpkg-deb", "cpan",
    "update-alternatives", "npm", "gem", "gcc", "cc", "make", "ld", "as",
)  # fmt: skip
MODULES = ("pip", "ensurepip", "setuptools", "wheel", "pkg_resources")
NEEDED = ("git", "ssh", "sealci-agent", "python3")
EXAMINE = f"""
import importlib.util, json, os, shutil, stat, subprocess
found = []
for folder, _, names in os.walk("/"):
    if folder.split("/")[1] in ("proc", "sys", "dev"):
        continue
    for name in names:
        mode = os.lstat(os.path.join(folder, name)).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            found.append(os.path.join(folder, name))
modules = "import importlib.util; print([m for m in {MODULES!r} if importlib.util.find_spec(m)])"
print(json.dumps({{
    "setuid": found,
    "tools": [name for name in {TOOLS!r} if shutil.which(name)],
    "needed": [name for name in {NEEDED!r} if not shutil.which(name)],
    "modules": [subprocess.check_output([each, "-c", modules], text=True).strip()
                for each in ("/opt/sealci/bin/python", os.path.realpath("/opt/sealci/bin/python"))],
    "user": os.getuid(),
    "git": subprocess.check_output(["git", "--version"], text=True),
}}))
"""


def test_the_image_has_no_setuid_program_and_nothing_that_installs(namespace: str) -> None:
    container: Object = {
        "name": "examine",
        "image": f"{IMAGE['repository']}:{IMAGE['tag']}",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", EXAMINE],
    }
    meta = {"name": "examine", "namespace": namespace}
    spec = {"restartPolicy": "Never", "containers": [container]}
    kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    kube.kubectl("wait", "-n", namespace, "pod/examine", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=90s")
    seen = json.loads(kube.kubectl("logs", "-n", namespace, "examine"))
    assert seen.pop("git").startswith("git version")
    assert seen == {"setuid": [], "tools": [], "needed": [], "modules": ["[]", "[]"], "user": 65532}

"""Privileges of a pod in the security profiles `baseline` and `restricted`, as seen from inside the pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import BUSYBOX, DEBIAN, Lab, new_namespace, open_lab
from tests.e2e.repository import repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NONROOT = "localhost/sealci-test/nonroot:1"
NO_GIT = "[left out of the files: .git: excluded by default]\n"
DEB = """
mkdir -p p/DEBIAN p/opt && echo hello > p/opt/hello
printf 'Package: hello\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x>\\nDescription: x\\n' > p/DEBIAN/control
dpkg-deb --build p hello.deb && dpkg -i hello.deb && cat /opt/hello
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a small git repository to pods while the module's tests run. Yield its URL."""
    with repository(tmp_path_factory.mktemp("git")) as url:
        yield url


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    """Return settings that also allow actions to clone over git://."""
    return {"policy": {"repository_schemes": ["git", "https"]}}


@pytest.fixture(scope="module")
def baseline(lab: Lab, repositories: str) -> dict[str, Any]:
    """Run the actions that the baseline profile must allow, all at once."""
    repo = {"url": repositories}
    commit = "echo x >> file && git -c user.name=x -c user.email=x@x commit -qam second && git log --format=%s"
    return lab.run(
        {
            "token": {"image": BUSYBOX, "commands": ["test ! -e /var/run/secrets/kubernetes.io"]},
            "links": {"image": BUSYBOX, "commands": ["env | grep SERVICE_HOST | grep -vc ^KUBERNETES_ || true"]},
            "status": {"image": BUSYBOX, "commands": ["grep -E 'NoNewPrivs|Seccomp:|CapBnd|CapEff' /proc/self/status"]},
            "userns": {"image": BUSYBOX, "commands": ["id -u; cat /proc/self/uid_map"]},
            "chown": {"image": DEBIAN, "commands": ["touch f; chown 1234:1234 f; stat -c %u f"]},
            "su": {"image": DEBIAN, "commands": ["su nobody -s /bin/sh -c 'id -un'"]},
            "dpkg": {"image": DEBIAN, "commands": [DEB]},
            "commit": {"image": DEBIAN, "repo": repo, "commands": [commit]},
            "nonroot": {
                "image": NONROOT,
                "repo": repo,
                "commands": ["id -u; echo more >> file; echo new > new; cat file"],
            },
        }
    )


def test_no_token_and_no_service_links(baseline: dict[str, Any]) -> None:
    assert baseline["token"].outcome == ("succeeded", None, 0)
    assert baseline["links"].text == "0\n"


def test_no_new_privileges_and_seccomp(baseline: dict[str, Any]) -> None:
    found = dict(line.split(":\t") for line in baseline["status"].text.splitlines())
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    # A container runtime grants no SYS_ADMIN (21), NET_ADMIN (12) and SYS_PTRACE (19) by default, so they must be
    # missing here too.
    bounding = int(found["CapBnd"], 16)
    assert not bounding & (1 << 21 | 1 << 12 | 1 << 19)


def test_root_is_an_unprivileged_user_on_the_node(baseline: dict[str, Any]) -> None:
    uid, mapping = baseline["userns"].text.splitlines()
    assert uid == "0"
    inside, outside, _ = (int(each) for each in mapping.split())
    assert inside == 0
    assert outside > 65535


@pytest.mark.parametrize(("name", "text"), [("chown", "1234\n"), ("su", "nobody\n"), ("commit", "second\nfirst\n")])
def test_root_can_do_the_work_of_builds(baseline: dict[str, Any], name: str, text: str) -> None:
    assert baseline[name].outcome == ("succeeded", None, 0), baseline[name]
    assert baseline[name].text.startswith(text)


def test_packages_can_be_installed(baseline: dict[str, Any]) -> None:
    assert baseline["dpkg"].outcome == ("succeeded", None, 0), baseline["dpkg"]
    assert baseline["dpkg"].text.endswith("hello\n")


def test_another_user_can_write_the_clone(baseline: dict[str, Any]) -> None:
    report = baseline["nonroot"]
    assert report.outcome == ("succeeded", None, 0), report
    assert report.text == f"1000\ncloned\nmore\n{NO_GIT}"
    assert set(report.files) == {"file", "new"}


def test_a_missing_ref_is_reported(lab: Lab, repositories: str) -> None:
    report = lab.one(BUSYBOX, "echo never", repo={"url": repositories, "ref": "no-such-branch"})
    assert report.outcome == ("failed", "REPOSITORY_FAILED", None), report
    assert "no-such-branch" in report.text
    assert "never" not in report.text.splitlines()


# ---- the profile `restricted`


@pytest.fixture
def restricted(tmp_path: Path) -> Iterator[Lab]:
    """Yield a lab in a namespace that enforces the restricted Pod Security Standard."""
    settings: dict[str, Any] = {"environment": {"profile": "restricted"}, "policy": {"repository_schemes": ["git"]}}
    with (
        new_namespace("pod-security.kubernetes.io/enforce=restricted") as name,
        open_lab(name, tmp_path, **settings) as lab,
    ):
        lab.agent()
        yield lab


def test_the_restricted_profile(restricted: Lab, repositories: str) -> None:
    reports = restricted.run(
        {
            "runs": {
                "image": DEBIAN,
                "repo": {"url": repositories},
                "commands": ["id -u; id -g", "echo x > $HOME/x && echo y >> file", "grep CapEff /proc/self/status"],
            },
            "umask": {"image": DEBIAN, "commands": ["umask 077; echo x > private"]},
        }
    )
    runs = reports["runs"]
    assert runs.outcome == ("succeeded", None, 0), runs
    assert runs.text == "65532\n65532\nCapEff:\t0000000000000000\n" + NO_GIT
    assert runs.files["file"].read_text() == "cloned\ny\n"
    assert reports["umask"].files["private"].read_text() == "x\n"


def test_the_baseline_profile_in_a_restricted_namespace_is_reported(restricted: Lab) -> None:
    restricted.agents[0].stop()
    restricted.agent(environment={"profile": "baseline"})
    report = restricted.one(BUSYBOX, "echo never")
    assert report.outcome == ("failed", "CLUSTER_UNAVAILABLE", None)
    assert "violates PodSecurity" in report.text
    assert "environment.profile=restricted" in report.text


IMAGES_CHOOSE = {
    "securityContext": {"runAsUser": None, "runAsGroup": None},
    "containers": [{"name": "helper", "securityContext": {"runAsUser": 65532, "runAsGroup": 65532}}],
}


def test_an_image_that_requires_root_is_reported(restricted: Lab) -> None:
    """If the pod template sets no user, the image of an action determines the user.

    An image that runs as root is then still refused, and the outcome gives the reason.
    """
    restricted.agents[0].stop()
    restricted.agent(environment={"pod_template": {"spec": IMAGES_CHOOSE}})
    reports = restricted.run(
        {"root": {"image": BUSYBOX, "commands": ["echo never"]}, "other": {"image": NONROOT, "commands": ["id -u"]}}
    )
    root = reports["root"]
    assert root.outcome == ("failed", "INVALID_CONFIGURATION", None), root
    assert root.finished["stage"] == "setup"
    assert root.finished["message"] == "the image runs as root, which the restricted profile forbids"
    assert "never" not in root.text.splitlines()
    assert (reports["other"].outcome, reports["other"].text) == (("succeeded", None, 0), "1000\n"), reports["other"]

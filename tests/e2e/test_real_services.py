"""Published Python packages run their own tests against a real PostgreSQL and a real Redis as services.

pg8000 is a driver of PostgreSQL, and walrus a library on top of Redis. Their sdists and wheels come from pip, as those
of the demo, and travel in a git repository.
"""

from __future__ import annotations

import re
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from deploy.demo import source
from tests.e2e import kube
from tests.e2e.lab import DEBIAN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.lab import Lab

PACKAGES = ("pg8000==1.31.6", "walrus==0.9.8")
WHEELS = (
    "pytest==9.2.0",
    "pytest-mock",
    "scramp",
    "python-dateutil",
    "pytz",
    "redis",
    "asn1crypto",
    "six",
    "async-timeout",
)
# Left out are tests that need another configuration of the server (TLS, Kerberos, passwords), benchmarks, a test that
# expects the kernel to notice a closed connection in one of two ways, and a test that takes a minute.
PG8000 = (
    "python3 -m pytest -q -p no:cacheprovider --durations 5 --ignore-glob='*/auth/*' --ignore-glob='*benchmarks*' "
    "--deselect test/native/test_connection.py::test_broken_pipe_read "
    "--deselect test/dbapi/test_connection.py::test_broken_pipe_read "
    "--deselect test/native/test_query.py::test_max_parameters test/native test/dbapi"
)
HSTORE = "import pg8000.native as n; n.Connection('postgres', host='db').run('create extension hstore')"
WALRUS = "WALRUS_REDIS_HOST=redis python3 -m unittest -q walrus.tests"


def make_repository(folder: Path) -> None:
    """Make a bare repository with the sources of both packages and the wheels that their tests need."""
    downloads, work = source.cache() / "services", folder / "work"
    if not (downloads / "wheels" / "done").exists():
        for each in PACKAGES:
            source.pip("download", "--no-deps", "--no-binary", each.partition("=")[0], each, into=downloads)
        source.pip("download", *WHEELS, into=downloads / "wheels")
        (downloads / "wheels" / "done").touch()
    work.mkdir(parents=True)
    for archive in downloads.glob("*.tar.gz"):
        with tarfile.open(archive) as opened:
            opened.extractall(work, filter="data")
    for each in PACKAGES:
        name, _, version = each.partition("==")
        (work / f"{name}-{version}").rename(work / name)
    (work / "wheels").mkdir()
    for wheel in (downloads / "wheels").glob("*.whl"):
        (work / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
    source.git(work, "init", "--quiet", "--initial-branch=main", ".")
    source.git(work, "add", "--all", "--force")
    source.git(work, "commit", "--quiet", "--message", "as published")
    source.git(folder, "clone", "--quiet", "--bare", str(work), str(folder / "packages.git"))


def action(url: str, **database: Any) -> dict[str, Any]:
    postgres = {
        "container": "localhost/sealci-test/postgres:1",
        "ports": [5432],
        "health": {"command": ["sh", "-c", "exec /usr/lib/postgresql/*/bin/pg_isready -h 127.0.0.1 -U postgres"]},
        **database,
    }
    return {
        "image": DEBIAN,
        "repo": {"url": f"{url}/packages.git", "depth": 1},
        "services": {"db": postgres, "redis": {"container": "localhost/sealci-test/redis:1", "ports": [6379]}},
        "env": {"PGHOST": "db", "PGPORT": "5432", "PGUSER": "postgres", "PGPASSWORD": "pw", "PGDATABASE": "postgres"},
        "commands": [
            "mkdir -p /tmp/site && for file in wheels/*.whl; do python3 -m zipfile -e $file /tmp/site; done",
            # pg8000 reads its version from the metadata of its installation.
            "d=/tmp/site/pg8000-1.31.6.dist-info; mkdir $d && cp pg8000/PKG-INFO $d/METADATA",
            'export PYTHONPATH="/tmp/site:$PWD/pg8000/src:$PWD/walrus" PYTHONDONTWRITEBYTECODE=1',
            f'python3 -c "{HSTORE}"',
            f"cd pg8000 && {PG8000}; cd ..",
            f"cd walrus && {WALRUS} 2>&1",
        ],
        "artifacts": "none",
        "timeout": "4m",
    }


@pytest.mark.parametrize(
    ("profile", "database"),
    [
        ("baseline", {}),
        ("restricted", {"scratch": ["/data"], "env": {"PGDATA": "/data/db"}}),
    ],
)
def test_the_tests_of_published_packages_pass_against_real_services(
    own_lab: Lab, tmp_path: Path, profile: str, database: dict[str, Any]
) -> None:
    make_repository(tmp_path / "repositories")
    own_lab.agent(policy={"repository_schemes": ["git"]}, environment={"profile": profile})
    with source.serve_git(tmp_path / "repositories", kube.provider("address")) as url:
        report = own_lab.run({"test": action(url, **database)}, timeout=280)["test"]
    assert report.outcome == ("succeeded", None, 0), str(report)
    passed = re.search(r"(\d+) passed", report.text)
    assert passed, report
    assert int(passed[1]) > 100
    ran = re.search(r"Ran (\d+) tests", report.text)
    assert ran, report
    assert int(ran[1]) > 100
    spec = own_lab.observer.states[0]["spec"]
    assert (spec.get("hostUsers") is False) == (profile == "baseline")
    assert [each["name"] for each in spec["containers"]] == ["helper", "service-db", "service-redis", "action"]

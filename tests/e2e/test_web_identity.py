"""Credentials for a web identity, from the token service that moto plays. No test needs a pod.

moto refuses no role. `tests/unit/objects/test_credentials.py` has the answers of a service that does.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from agent.objects.credentials import RENEW_SECONDS, SESSION_SECONDS
from agent.objects.store import GRANT_SECONDS, ObjectStore, checksum_header
from agent.settings import ObjectSettings
from tests.e2e import kube

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.objects.signature import Credentials

ROLE = "arn:aws:iam::123456789012:role/ci"
ORACLE = kube.ROOT / "tests/unit/objects/oracle.py"
NOW = 1_800_000_000


@pytest.fixture(scope="module")
def python() -> str:
    """Return the Python that has moto and botocore."""
    return kube.provider("moto", timeout=600).splitlines()[-1]


@pytest.fixture(scope="module")
def aws(python: str) -> Iterator[str]:
    """Yield the URL of a server that plays the services of AWS."""
    command = [python, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(filter(None, (re.search(r"Running on (http://\S+)", line) for line in process.stderr)))
            yield found[1]
        finally:
            process.kill()


def store_at(aws: str, folder: Path) -> ObjectStore:
    """Return a store whose agent has a token of its service account, and no other credentials."""
    (folder / "token").write_text("token-of-the-pod\n")
    environ = {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(folder / "token"),
        "AWS_ROLE_ARN": ROLE,
        "AWS_ENDPOINT_URL_STS": f"{aws}/",
    }
    values = {"issuer": "agent", "endpoint": aws, "bucket": "artifacts", "path_style": True}
    return ObjectStore(ObjectSettings.model_validate(values), environ)


def signature_of_botocore(python: str, url: str, headers: dict[str, str], credentials: Credentials) -> str:
    key = (credentials.key_id, credentials.secret)
    arguments: list[Any] = ["PUT", url, headers, {}, credentials.token, key, NOW]
    done = subprocess.run([python, str(ORACLE), json.dumps(arguments)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


async def test_a_role_is_assumed_and_signs_urls(aws: str, python: str, tmp_path: Path) -> None:
    store = store_at(aws, tmp_path)
    credentials = await store.credentials()
    assert credentials.key_id.startswith("ASIA")
    assert credentials.token
    assert abs((credentials.expires or 0.0) - store.source.clock() - SESSION_SECONDS) < 60
    headers = checksum_header(bytes(32))
    store.clock = lambda: NOW
    store.settings = store.settings.model_copy(update={"region": "eu-west-1"})
    url = store.sign(credentials, "PUT", "sealci/x", headers=headers)
    query = parse_qs(urlsplit(url).query)
    assert query["X-Amz-Security-Token"] == [credentials.token]
    expected = signature_of_botocore(python, store.url("sealci/x"), headers, credentials)
    assert query["X-Amz-Signature"] == [expected]
    # The service that moto plays takes requests of the role.
    store = store_at(aws, tmp_path)
    async with aiohttp.ClientSession() as http:
        await http.put(f"{aws}/artifacts")
    await store.put("sealci/x", b"content")
    assert await store.get("sealci/x") == b"content"


async def test_credentials_are_renewed_before_a_url_can_outlive_them(aws: str, tmp_path: Path) -> None:
    store = store_at(aws, tmp_path)
    first = await store.credentials()
    assert first.expires is not None
    assert GRANT_SECONDS < RENEW_SECONDS < SESSION_SECONDS
    end = first.expires
    store.source.clock = lambda: end - RENEW_SECONDS - 1
    assert await store.credentials() is first
    store.source.clock = lambda: end - RENEW_SECONDS + 1
    second = await store.credentials()
    assert second.key_id != first.key_id

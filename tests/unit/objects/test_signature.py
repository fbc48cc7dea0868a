"""Signed URLs, by the example in AWS's documentation and by what botocore signs (`botocore.json`)."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agent.objects.signature import Credentials, presign

# Made by `oracle.py` beside this file, which needs botocore. The tests themselves do not.
VECTORS = json.loads((Path(__file__).parent / "botocore.json").read_text("utf-8"))


def test_the_example_of_the_documentation() -> None:
    # https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    now = datetime.fromisoformat("2013-05-24T00:00:00+00:00").timestamp()
    url = presign("GET", "https://examplebucket.s3.amazonaws.com/test.txt", credentials, "us-east-1", now, 86400)
    start = "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    assert url.startswith(start)
    assert url.endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


@pytest.mark.parametrize("vector", VECTORS, ids=[each["id"] for each in VECTORS])
def test_a_url_has_the_signature_of_botocore(vector: dict[str, Any]) -> None:
    credentials = Credentials(vector["key"], vector["secret"], vector["token"])
    url = presign(
        vector["method"],
        vector["url"],
        credentials,
        vector["region"],
        vector["now"],
        vector["seconds"],
        headers=vector["headers"],
        query=vector["query"],
    )
    assert url.rpartition("X-Amz-Signature=")[2] == vector["signature"]


def test_a_repr_shows_no_secret() -> None:
    assert "hidden" not in repr(Credentials("id", "hidden", "hidden"))

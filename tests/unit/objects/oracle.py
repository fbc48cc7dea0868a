"""Print signatures that botocore makes: those of `botocore.json` for `test_signature.py`, or a single one.

This program needs a Python that has botocore, which `python -m deploy.dev.cluster moto` prints.

PYTHON tests/unit/objects/oracle.py > tests/unit/objects/botocore.json
"""

from __future__ import annotations

import importlib
import json
import sys
from datetime import UTC, datetime
from unittest import mock

NOW = 1_800_000_000
CASES = [
    ("plain", "GET", "https://store.example:9000/bucket/a/b.txt", {}, {}, ""),
    ("checksum", "PUT", "https://bucket.store.example/a", {"x-amz-checksum-sha256": "AAAA+/=="}, {}, ""),
    (
        "part",
        "PUT",
        "http://127.0.0.1:7070/b/k",
        {"x-amz-checksum-sha256": "x"},
        {"partNumber": "3", "uploadId": "a+/="},
        "",
    ),
    ("begin", "POST", "http://127.0.0.1:7070/b/k", {"x-amz-checksum-algorithm": "SHA256"}, {"uploads": ""}, ""),
    ("token", "DELETE", "https://s.example/b/k", {}, {"uploadId": "1"}, "session/token+with="),
    ("odd name", "GET", "https://s.example/b/a%20b/%25FF/%C3%A4%28%29%21~", {}, {}, ""),
]


def signature(
    method: str,
    url: str,
    headers: dict[str, str],
    query: dict[str, str],
    token: str,
    key: tuple[str, str] = ("key", "secret"),
    seconds: float = NOW,
) -> str:
    auth, requests, credentials = (
        importlib.import_module(f"botocore.{name}") for name in ("auth", "awsrequest", "credentials")
    )
    request = requests.AWSRequest(method=method, url=url, headers=headers, params=query)
    now = datetime.fromtimestamp(seconds, UTC)
    signer = auth.S3SigV4QueryAuth(credentials.Credentials(*key, token or None), "s3", "eu-west-1", expires=900)
    names = ("get_current_datetime", "datetime")
    name = next(each for each in names if hasattr(auth, each))
    value = mock.Mock(return_value=now) if name == "get_current_datetime" else mock.Mock(utcnow=lambda: now)
    with mock.patch.object(auth, name, value):
        signer.add_auth(request)
    return str(request.url).rpartition("X-Amz-Signature=")[2]


def main() -> None:
    """Print the vectors as JSON."""
    rows = [
        {
            "id": name,
            "method": method,
            "url": url,
            "headers": headers,
            "query": query,
            "key": "key",
            "secret": "secret",
            "token": token,
            "region": "eu-west-1",
            "now": NOW,
            "seconds": 900,
            "signature": signature(method, url, headers, query, token),
        }
        for name, method, url, headers, query, token in CASES
    ]
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    # With arguments: print one signature. The arguments are those of `signature` as JSON.
    print(signature(*json.loads(sys.argv[1]))) if sys.argv[1:] else main()

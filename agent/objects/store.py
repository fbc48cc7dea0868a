"""The object store, as the agent uses it: sign URLs, and the few small requests that begin and end an upload.

An `ObjectStore` lives as long as the agent. No file passes through it: container `helper` of a pod moves the bytes with
the URLs that this module signs.
"""

from __future__ import annotations

import base64
import hashlib
import html
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import aiohttp
from yarl import URL

from agent.objects.credentials import CredentialSource
from agent.objects.errors import StoreError, error_of_answer, read_answer, xml_field
from agent.objects.signature import encode, presign

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from agent.objects.signature import Credentials
    from agent.settings import ObjectSettings

# Seconds that a signed URL is valid.
GRANT_SECONDS = 900
# Seconds until a request of the agent's own fails.
REQUEST_SECONDS = 30.0
# Seconds until the request that joins the parts of an upload fails. A store may copy all bytes for it.
COMPLETE_SECONDS = 600.0
# Maximum number of bytes of an answer that is read.
MAX_ANSWER = 256 << 10
CHECKSUM = "x-amz-checksum-sha256"
HTTP_OK = 200
HTTP_PARTIAL = 206
# Number of bytes of one piece of an object that is read.
STREAM_BYTES = 256 << 10


def checksum_header(sha256: bytes) -> dict[str, str]:
    """Return the header that makes the store refuse other bytes."""
    return {CHECKSUM: base64.b64encode(sha256).decode()}


def read_ca(settings: ObjectSettings) -> str:
    """Return the PEM certificates of the store's CA, "" for the CAs of the system.

    Raises:
        StoreError: the CA file cannot be read.
    """
    file = settings.ca_file
    try:
        return file.read_text(encoding="ascii") if file is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"objects.ca_file: {file} cannot be read: {error}") from error


class ObjectStore:
    """One bucket of an S3-compatible store. Owned by the application, lives as long as the agent."""

    def __init__(self, settings: ObjectSettings, environ: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.source = CredentialSource(settings.credentials_file, settings.region, environ)
        self.trust: ssl.SSLContext | None = None
        self.clock: Callable[[], float] = time.time

    def session(self) -> aiohttp.ClientSession:
        """Return a new HTTP session, for a few requests.

        Raises:
            StoreError: the CA file cannot be read.
        """
        if self.trust is None:
            try:
                self.trust = ssl.create_default_context(cafile=self.settings.ca_file)
            except OSError as error:
                raise StoreError(f"objects.ca_file: {self.settings.ca_file} cannot be read: {error}") from error
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.trust), trust_env=True)

    @property
    def ca(self) -> str:
        """Return the PEM certificates of the store's CA, "" for the CAs of the system.

        Raises:
            StoreError: the CA file cannot be read.
        """
        return read_ca(self.settings)

    # ---- names and URLs

    def uri(self, key: str) -> str:
        """Return the name of an object, for schedulers and for people."""
        return f"s3://{self.settings.bucket}/{encode(key, '/')}"

    def key_of(self, uri: str) -> str:
        """Return the name of an object of the agents, "" if the URI names another bucket or another prefix."""
        start = f"s3://{self.settings.bucket}/"
        name = unquote(uri.removeprefix(start)) if uri.startswith(start) else ""
        return name if name.startswith(f"{self.settings.prefix}/") else ""

    def url(self, key: str = "") -> str:
        """Return the URL of an object, or of the bucket, without a signature."""
        endpoint = urlsplit(self.settings.endpoint)
        bucket = self.settings.bucket
        if self.settings.path_style:
            return f"{endpoint.scheme}://{endpoint.netloc}/{encode(bucket)}/{encode(key, '/')}"
        return f"{endpoint.scheme}://{bucket}.{endpoint.netloc}/{encode(key, '/')}"

    async def credentials(self) -> Credentials:
        """Return credentials. See `CredentialSource.current`."""
        async with self.session() as http:
            return await self.source.current(http)

    def sign(
        self,
        credentials: Credentials,
        method: str,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> str:
        """Return a URL that allows one request on an object for `GRANT_SECONDS`."""
        return presign(
            method,
            self.url(key),
            credentials,
            self.settings.region,
            self.clock(),
            GRANT_SECONDS,
            headers=headers,
            query=query,
        )

    # ---- requests of the agent's own

    async def request(
        self,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        seconds: float = REQUEST_SECONDS,
    ) -> tuple[Mapping[str, str], bytes]:
        """Send a request and return the headers and the body of the answer, which comes within `seconds`.

        Raises:
            StoreError: the store does not answer, or refuses the request.
        """
        url = self.sign(await self.credentials(), method, key, headers=headers, query=query)
        what = f"{method} {self.uri(key)}"
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            target = URL(url, encoded=True)
            async with (
                self.session() as http,
                http.request(
                    method, target, headers=headers, data=body, timeout=timeout, allow_redirects=False
                ) as answer,
            ):
                found = await read_answer(answer.content, MAX_ANSWER)
                status, fields = answer.status, dict(answer.headers)
        except TimeoutError as error:
            raise StoreError(f"{what}: no answer within {seconds:g} s", retryable=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise StoreError(f"{what}: {error}", retryable=True) from error
        # An upload can fail after its status was sent. The body then has an error.
        if status >= 300 or xml_field(found, "Code"):
            raise error_of_answer(what, status, found)
        return {name.lower(): value for name, value in fields.items()}, found

    async def begin_upload(self, key: str) -> str:
        """Begin an upload in parts and return its id."""
        headers = {"x-amz-checksum-algorithm": "SHA256"}
        _, body = await self.request("POST", key, query={"uploads": ""}, headers=headers)
        if not (upload := xml_field(body, "UploadId")):
            raise StoreError(f"POST {self.uri(key)}: the store gave no id for an upload in parts")
        return upload

    async def complete_upload(self, key: str, upload: str, parts: Sequence[tuple[str, bytes]]) -> str:
        """Join the parts of an upload, given by ETag and SHA-256, and return the ETag of the object."""
        rows = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(etag)}</ETag>"
            f"<ChecksumSHA256>{base64.b64encode(sha256).decode()}</ChecksumSHA256></Part>"
            for number, (etag, sha256) in enumerate(parts, 1)
        )
        body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
        query = {"uploadId": upload}
        _, answer = await self.request("POST", key, query=query, body=body, seconds=COMPLETE_SECONDS)
        return xml_field(answer, "ETag").strip('"')

    async def abort_upload(self, key: str, upload: str) -> None:
        """Drop the parts of an upload."""
        await self.request("DELETE", key, query={"uploadId": upload})

    async def put(self, key: str, data: bytes) -> str:
        """Store a small object and return its ETag."""
        headers = checksum_header(hashlib.sha256(data).digest())
        fields, _ = await self.request("PUT", key, headers=headers, body=data)
        return fields.get("etag", "").strip('"')

    async def get(self, key: str) -> bytes:
        """Return a small object."""
        _, body = await self.request("GET", key)
        return body

    async def stream(self, key: str, offset: int, size: int) -> AsyncGenerator[bytes, None]:
        """Yield `size` bytes of an object from `offset` on.

        Raises:
            StoreError: the store does not answer, or breaks off, or the object ends earlier.
        """
        if not size:
            return
        url = URL(self.sign(await self.credentials(), "GET", key), encoded=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=REQUEST_SECONDS)
        headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        try:
            async with (
                self.session() as http,
                http.get(url, headers=headers, timeout=timeout, allow_redirects=False) as answer,
            ):
                if answer.status not in (HTTP_OK, HTTP_PARTIAL):
                    body = await read_answer(answer.content, MAX_ANSWER)
                    raise error_of_answer(f"GET {self.uri(key)}", answer.status, body)
                # Some stores ignore the range and send the whole object.
                skip, left = (offset if answer.status == HTTP_OK else 0), size
                async for data in answer.content.iter_chunked(STREAM_BYTES):
                    wanted = data[skip : skip + left]
                    skip, left = max(0, skip - len(data)), left - len(wanted)
                    yield wanted
                    if not left:
                        return
                raise StoreError(f"GET {self.uri(key)}: the object ends too early")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise StoreError(f"GET {self.uri(key)}: {error!r}", retryable=True) from error

    async def delete(self, key: str) -> None:
        await self.request("DELETE", key)

    async def is_public(self, key: str) -> bool:
        """Return whether an object can be read without a signature."""
        try:
            timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
            url = URL(self.url(key), encoded=True)
            async with self.session() as http, http.get(url, timeout=timeout, allow_redirects=False) as answer:
                return answer.status == HTTP_OK
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


def part_query(upload: str, number: int) -> dict[str, str]:
    """Return the query of one part of an upload. Parts are counted from 1."""
    return {"partNumber": str(number), "uploadId": upload}

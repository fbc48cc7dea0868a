"""The credentials of the object store: from a file, from the environment, or for a web identity.

A `CredentialSource` lives as long as its `ObjectStore`. Files are read again whenever a URL is signed, so that
credentials can be rotated without a restart. Temporary credentials are renewed before they expire.
"""

from __future__ import annotations

import asyncio
import configparser
import os
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from agent.objects.errors import StoreError, error_of_answer, read_answer, xml_field
from agent.objects.signature import Credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Seconds before the expiry of temporary credentials at which they are renewed. A URL dies with the credentials that
# signed it, so this is longer than any URL lives.
RENEW_SECONDS = 1200.0
# Seconds for which temporary credentials shall be valid.
SESSION_SECONDS = 3600
# Maximum number of bytes of an answer of the token service.
MAX_ANSWER = 64 << 10
STS_SECONDS = 15.0


def read_credentials_file(file: Path) -> Credentials:
    """Read a file in the format of AWS (`[default]`, `aws_access_key_id = ...`).

    Raises:
        StoreError: the file cannot be read or lacks a key. The message never contains the file's text.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
        section = parser["default"]
        return Credentials(
            section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token", "")
        )
    except OSError as error:
        raise StoreError(f"objects.credentials_file: {file} cannot be read: {error.strerror}") from error
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        what = "a section [default] with aws_access_key_id and aws_secret_access_key"
        raise StoreError(f"objects.credentials_file: {file} does not hold {what}") from error


class CredentialSource:
    """Finds the credentials of one store.

    The first source that is set is used, in this order: `file`, the variables of AWS for a web identity, the variables
    of AWS for a key.
    """

    def __init__(self, file: Path | None, region: str, environ: Mapping[str, str] | None = None) -> None:
        self.file = file
        self.region = region
        self.environ = os.environ if environ is None else environ
        self.session_credentials: Credentials | None = None
        self.lock = asyncio.Lock()
        self.clock: Callable[[], float] = time.time

    async def current(self, http: aiohttp.ClientSession) -> Credentials:
        """Return credentials that are valid for some time.

        Raises:
            StoreError: no source is set, or a source does not work.
        """
        if self.file is not None:
            return await asyncio.to_thread(read_credentials_file, self.file)
        if self.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") and self.environ.get("AWS_ROLE_ARN"):
            return await self.web_identity(http)
        key, secret = self.environ.get("AWS_ACCESS_KEY_ID"), self.environ.get("AWS_SECRET_ACCESS_KEY")
        if key and secret:
            return Credentials(key, secret, self.environ.get("AWS_SESSION_TOKEN", ""))
        raise StoreError(
            "no credentials for the object store: set objects.credentials_file, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN"
        )

    async def web_identity(self, http: aiohttp.ClientSession) -> Credentials:
        """Return the credentials of the role AWS_ROLE_ARN, for the token of this pod's service account."""
        async with self.lock:
            now, found = self.clock(), self.session_credentials
            if found is None or (found.expires or 0.0) - now < RENEW_SECONDS:
                found = self.session_credentials = await self.assume_role(http)
            return found

    async def assume_role(self, http: aiohttp.ClientSession) -> Credentials:
        """Exchange the token of this pod's service account for credentials.

        Raises:
            StoreError: the token cannot be read, or the token service does not give credentials.
        """
        file = Path(self.environ["AWS_WEB_IDENTITY_TOKEN_FILE"])
        endpoint = self.environ.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{self.region}.amazonaws.com/"
        try:
            token = (await asyncio.to_thread(file.read_text, encoding="utf-8")).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"AWS_WEB_IDENTITY_TOKEN_FILE: {file} cannot be read") from error
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": self.environ["AWS_ROLE_ARN"],
            "RoleSessionName": self.environ.get("AWS_ROLE_SESSION_NAME") or "sealci-agent",
            "WebIdentityToken": token,
            "DurationSeconds": str(SESSION_SECONDS),
        }
        try:
            limit = aiohttp.ClientTimeout(total=STS_SECONDS)
            async with http.post(endpoint, data=form, timeout=limit, allow_redirects=False) as answer:
                text = await read_answer(answer.content, MAX_ANSWER)
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise StoreError(f"the token service {endpoint} does not answer: {error!r}", retryable=True) from error
        if status != 200:
            raise error_of_answer(f"the token service {endpoint} refuses the role {form['RoleArn']}", status, text)
        return read_session_credentials(text)


def read_session_credentials(text: bytes) -> Credentials:
    """Read the credentials in an answer of the token service.

    Raises:
        StoreError: the answer holds no credentials.
    """
    key, secret, token = (xml_field(text, name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken"))
    try:
        expires = datetime.fromisoformat(xml_field(text, "Expiration")).timestamp()
    except ValueError as error:
        raise StoreError("the token service answered without an expiry") from error
    if not (key and secret and token):
        raise StoreError("the token service answered without credentials")
    return Credentials(key, secret, token, expires)

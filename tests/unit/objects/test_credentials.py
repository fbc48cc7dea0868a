"""The sources of credentials, and the answers of a token service."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.objects.credentials import RENEW_SECONDS, CredentialSource
from agent.objects.errors import StoreError
from agent.objects.signature import Credentials

if TYPE_CHECKING:
    from pathlib import Path

FILE = "[default]\naws_access_key_id = file-key\naws_secret_access_key=file%secret\n"
KEYS = {"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "env-secret", "AWS_SESSION_TOKEN": "env-token"}

REFUSAL = (
    "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code>"
    "<Message>No provider found in your account</Message></Error></ErrorResponse>"
)


async def current(file: Path | None, environ: dict[str, str]) -> Credentials:
    async with aiohttp.ClientSession() as http:
        return await CredentialSource(file, "eu-west-1", environ).current(http)


async def test_a_file_wins_and_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(FILE)
    source = CredentialSource(file, "eu-west-1", KEYS)
    async with aiohttp.ClientSession() as http:
        assert await source.current(http) == Credentials("file-key", "file%secret")
        file.write_text(FILE.replace("file-key", "rotated") + "aws_session_token = t\n")
        assert await source.current(http) == Credentials("rotated", "file%secret", "t")


async def test_the_environment_is_the_last_source() -> None:
    assert await current(None, KEYS) == Credentials("env-key", "env-secret", "env-token")


@pytest.mark.parametrize("text", [None, "no section", "[default]\naws_access_key_id = k\n", "\xff"])
async def test_an_unusable_file_is_an_error_without_its_text(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "credentials"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"objects\.credentials_file") as failure:
        await current(file, KEYS)
    assert text is None or text not in failure.value.message


async def test_without_a_source_the_error_names_all() -> None:
    with pytest.raises(StoreError, match=r"objects\.credentials_file, AWS_ACCESS_KEY_ID") as failure:
        await current(None, {})
    assert not failure.value.retryable


async def test_a_web_identity_is_exchanged_and_renewed_in_time(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("service-account\n")
    lifetimes, forms = [RENEW_SECONDS - 1, RENEW_SECONDS + 600], []

    async def sts(request: web.Request) -> web.Response:
        forms.append(dict(await request.post()))
        if not lifetimes:
            return web.Response(status=400, text=REFUSAL)
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + lifetimes.pop(0)))
        fields = f"<AccessKeyId>k{len(forms)}</AccessKeyId><SecretAccessKey>s&amp;</SecretAccessKey>"
        return web.Response(text=f"<R>{fields}<SessionToken>t</SessionToken><Expiration>{expires}</Expiration></R>")

    app = web.Application()
    app.router.add_post("/", sts)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        environ = {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
            "AWS_ROLE_ARN": "arn:aws:iam::1:role/ci",
            "AWS_ENDPOINT_URL_STS": str(server.make_url("/")),
        }
        source = CredentialSource(None, "eu-west-1", environ)
        assert (await source.current(http)).key_id == "k1"
        renewed = await source.current(http)
        assert (renewed.key_id, renewed.secret, renewed.token) == ("k2", "s&", "t")
        assert await source.current(http) is renewed
        source.session_credentials = None
        role = r"refuses the role arn:aws:iam::1:role/ci"
        with pytest.raises(StoreError, match=f"{role}: HTTP 400 InvalidIdentityToken: No provider") as failure:
            await source.current(http)
        assert not failure.value.retryable
        assert "service-account" not in failure.value.message
        assert forms[0]["WebIdentityToken"] == "service-account"
        assert forms[0]["RoleArn"] == "arn:aws:iam::1:role/ci"

"""Tokens and certificates that were replaced while a stream is open: noticed, tried, and taken into use.

A `Rotation` lives as long as its stream. Mounted Secrets change under a running agent, and what has expired must not be
found out at the next reconnect, hours later. So the files are looked at every few seconds. When they have changed, a
connection is opened with them first: only if that succeeds does the stream end, and the next one begins soon after,
with its sessions where they were. If it does not, the old stream stays, and whoever replaced them is told.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, NoReturn

import structlog

from agent.scheduler.stream.channel import Broken, metadata, open_channel

if TYPE_CHECKING:
    from pathlib import Path

    from agent.settings import SchedulerSettings

CHECK_SECONDS = 10.0
TRY_SECONDS = 15.0
ROTATED = "rotated"

log = structlog.get_logger(__name__)


class Rotation:
    """Watches the files that a stream was opened with; made before it is, so that no change is missed."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.settings = settings
        self.used = fingerprint(settings)

    async def watch(self) -> NoReturn:
        """Wait for a change that can be used.

        Raises:
            Broken: with the kind `rotated`: the stream is to be opened anew.
        """
        tried = self.used
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            found = fingerprint(self.settings)
            if found in (self.used, tried):
                continue
            tried = found
            why = await self.unusable()
            if not why:
                raise Broken(ROTATED, "the token or the certificates were replaced")
            log.warning(
                "the new token or certificates cannot be used; the stream goes on with the old ones", reason=why
            )

    async def unusable(self) -> str:
        """Try a connection with what the files hold now; returns why it cannot be had, "" when it can."""
        try:
            metadata(self.settings)
            channel = open_channel(self.settings)
        except Broken as error:
            return str(error)
        try:
            async with asyncio.timeout(TRY_SECONDS):
                await channel.channel_ready()
        except TimeoutError:
            return f"no connection in {TRY_SECONDS:g} s"
        finally:
            await channel.close()
        return ""


def fingerprint(settings: SchedulerSettings) -> bytes:
    """Return what tells the contents of all files from others."""
    tls = settings.tls
    files = (settings.token_file, *((tls.ca_file, tls.cert_file, tls.key_file) if tls.enabled else ()))
    return b"".join(hashlib.sha256(content(each)).digest() for each in files)


def content(file: Path | None) -> bytes:
    """Read a file; one that cannot be read is as good as empty here: dialling says what is wrong."""
    try:
        return file.read_bytes() if file is not None else b""
    except OSError:
        return b""

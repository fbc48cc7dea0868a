"""Reload of tokens and certificates that are replaced while a stream is open.

The kubelet updates mounted Secrets under a running agent. Without a reload, expired credentials would fail at the next
reconnect, maybe hours later. A `CredentialReload` lives as long as its stream. It looks at the files every few seconds.
After a change it first opens a test connection with the new files. If the test connection succeeds, the stream ends and
the next stream opens at once, with the same sessions. If the test connection fails, the stream stays open and the agent
logs a warning.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import structlog

from agent.scheduler.call_status import ROTATED, ConnectionBroken
from agent.scheduler.stream.channel import call_metadata, open_channel

if TYPE_CHECKING:
    from pathlib import Path

    from agent.settings import SchedulerSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timings:
    """Wait times of the reload, in seconds."""

    check_interval: float = 10.0
    """Seconds between two looks at the files."""
    connect_timeout: float = 15.0
    """Seconds until a test connection counts as failed."""


DEFAULT_TIMINGS = Timings()


class CredentialReload:
    """Watches the credential files of one stream.

    The caller must create this object before the stream reads the files. Otherwise a change could be missed.
    """

    def __init__(self, settings: SchedulerSettings, timings: Timings = DEFAULT_TIMINGS) -> None:
        self.settings = settings
        self.timings = timings
        self.used = fingerprint(settings)

    async def watch(self) -> NoReturn:
        """Wait until the files have changed and the new files give a connection.

        Raises:
            ConnectionBroken: the stream must be opened again with the new files. The kind is `rotated`.
        """
        last_tried = self.used
        while True:
            await asyncio.sleep(self.timings.check_interval)
            found = fingerprint(self.settings)
            if found in (self.used, last_tried):
                continue
            last_tried = found
            problem = await self.try_connection()
            if not problem:
                raise ConnectionBroken(ROTATED, "the token or the certificates were replaced")
            log.warning("the new token or certificates do not work; keeping the open stream", reason=problem)

    async def try_connection(self) -> str:
        """Open and close a connection with the current files. Returns the problem, or "" if there is none."""
        try:
            call_metadata(self.settings)
            channel = open_channel(self.settings)
        except ConnectionBroken as error:
            return str(error)
        try:
            async with asyncio.timeout(self.timings.connect_timeout):
                await channel.channel_ready()
        except TimeoutError:
            return f"no connection in {self.timings.connect_timeout:g} s"
        finally:
            await channel.close()
        return ""


def fingerprint(settings: SchedulerSettings) -> bytes:
    """Return a hash of the contents of all credential files."""
    tls = settings.tls
    files = (settings.token_file, *((tls.ca_file, tls.cert_file, tls.key_file) if tls.enabled else ()))
    return b"".join(hashlib.sha256(contents_or_empty(each)).digest() for each in files)


def contents_or_empty(file: Path | None) -> bytes:
    """Return the contents of a file, or b"" if the file cannot be read. The test connection reports that problem."""
    try:
        return file.read_bytes() if file is not None else b""
    except OSError:
        return b""

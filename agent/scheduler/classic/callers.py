"""Decide by the address of a caller whether the caller may run actions. The classic protocol has no password.

A `Callers` lives as long as the server of the agent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import TYPE_CHECKING
from urllib.parse import unquote

import structlog

if TYPE_CHECKING:
    from agent.settings import SchedulerSettings

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ADDRESS = re.compile(r"(?:dns:/*)?\[?(?P<host>.*?)\]?(?::(?P<port>\d+))?")
# gRPC writes `ipv4:192.0.2.1:50000` and `ipv6:[2001:db8::1]:50000`, and may escape the brackets.
PEER = re.compile(r"ipv[46]:\[?(?P<host>[0-9A-Fa-f:.]+?)(?:%[^\]:]*)?\]?:\d+")
# Entry of the setting `callers` that stands for the addresses of the scheduler.
SCHEDULER = "scheduler"
# Seconds until the addresses of the scheduler's name are looked up again.
LOOKUP_SECONDS = 10.0

log = structlog.get_logger(__name__)


class Callers:
    """The addresses from which calls are accepted. An empty setting `callers` accepts calls from every address."""

    def __init__(self, settings: SchedulerSettings) -> None:
        entries = settings.classic.callers
        self.anyone = not entries
        self.networks = [ipaddress.ip_network(entry) for entry in entries if entry != SCHEDULER]
        self.scheduler = settings.address if SCHEDULER in entries else ""
        self.found: frozenset[Address] = frozenset()
        self.valid_until = 0.0

    async def admit(self, peer: str) -> bool:
        """Whether a caller may run actions. `peer` is the caller's address in gRPC's form."""
        if self.anyone:
            return True
        address = peer_address(peer)
        if address is None:
            return False
        if any(address in network for network in self.networks):
            return True
        return bool(self.scheduler) and address in await self.scheduler_addresses()

    async def scheduler_addresses(self) -> frozenset[Address]:
        """Return the addresses of the scheduler's name, or an empty set if the name cannot be looked up."""
        now = asyncio.get_running_loop().time()
        if now >= self.valid_until:
            self.valid_until = now + LOOKUP_SECONDS
            try:
                found = await look_up(self.scheduler)
                self.found = frozenset(plain(ipaddress.ip_address(entry[4][0])) for entry in found)
            except (OSError, ValueError) as error:
                log.warning("the scheduler's name cannot be looked up", address=self.scheduler, error=str(error))
                self.found = frozenset()
        return self.found


def peer_address(peer: str) -> Address | None:
    """Return the IP address of a caller, or None if the caller has no IP address. `peer` is in gRPC's form."""
    match = PEER.fullmatch(unquote(peer))
    try:
        return plain(ipaddress.ip_address(match["host"])) if match else None
    except ValueError:
        return None


def plain(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for. Return every other address unchanged."""
    return getattr(address, "ipv4_mapped", None) or address


def host_and_port(address: str) -> tuple[str, int]:
    """Return the host and the port of a scheduler's address. The default port is 443."""
    match = ADDRESS.fullmatch(address)
    return (match["host"], int(match["port"] or 443)) if match else (address, 443)


async def look_up(address: str) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]:
    """Return what `getaddrinfo` finds for a scheduler's address.

    Raises:
        OSError: the name is unknown.
    """
    host, port = host_and_port(address)
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)  # type: ignore[return-value]  # IP only

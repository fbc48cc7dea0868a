"""The callers that may run actions over the classic protocol, given by their addresses."""

from __future__ import annotations

import pytest

from agent.scheduler.classic.callers import Callers, peer_address
from agent.settings import SchedulerSettings


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:50000", "192.0.2.1"),
        ("ipv6:[2001:db8::1]:50000", "2001:db8::1"),
        ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::1"),
        ("ipv6:[fe80::1%25eth0]:50000", "fe80::1"),
        ("ipv6:[::ffff:192.0.2.1]:50000", "192.0.2.1"),
        ("unix:/run/x", "None"),
        ("ipv4:", "None"),
        ("ipv4:1:1", "None"),
        ("", "None"),
    ],
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert str(peer_address(peer)) == address


@pytest.mark.parametrize(
    ("callers", "peer", "admitted"),
    [
        ([], "unix:/run/x", True),
        (["192.0.2.0/24"], "ipv4:192.0.2.7:1", True),
        (["192.0.2.0/24"], "ipv6:[::ffff:192.0.2.7]:1", True),
        (["192.0.2.0/24"], "ipv4:192.0.3.7:1", False),
        (["192.0.2.0/24"], "ipv6:[2001:db8::1]:1", False),
        (["192.0.2.0/24"], "unix:/run/x", False),
        (["2001:db8::/32"], "ipv6:[2001:db8::1]:1", True),
        (["scheduler"], "ipv4:127.0.0.1:1", True),
        (["scheduler"], "ipv4:127.0.0.2:1", False),
        (["scheduler", "127.0.0.2"], "ipv4:127.0.0.2:1", True),
    ],
)
async def test_a_peer_is_admitted_by_its_address(callers: list[str], peer: str, *, admitted: bool) -> None:
    settings = SchedulerSettings.model_validate({"address": "127.0.0.1:7080", "classic": {"callers": callers}})
    assert await Callers(settings).admit(peer) is admitted


async def test_a_scheduler_without_a_name_admits_no_peer() -> None:
    settings = SchedulerSettings.model_validate({"address": "no.such.invalid:1", "classic": {"callers": ["scheduler"]}})
    assert not await Callers(settings).admit("ipv4:127.0.0.1:1")

"""Give the node and its pods access to networks outside this machine.

The access consists of a default route, NAT, and the machine's name servers. If this machine has no default route, the
cluster has no such access. CLUSTER_WAY_OUT=off also prevents the access. The rules are one table of nftables per
cluster, so `close_way` removes them at once and touches no other rule.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed, run
from deploy.dev.cluster.node import processes
from deploy.dev.cluster.settings import LINK_PREFIX, Settings

ROUTES = Path("/proc/net/route")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# systemd-resolved puts its own loopback address into the first file, and the servers that it queries into the second
# file.
RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def exists() -> bool:
    """Return whether this machine has a default route, and CLUSTER_WAY_OUT is not `off`."""
    if os.environ.get("CLUSTER_WAY_OUT") == "off":
        return False
    try:
        routes = [line.split() for line in ROUTES.read_text("utf-8").splitlines()[1:]]
    except OSError:
        return False
    # Column 1 is the destination, column 7 the mask. Both are 0 in a default route.
    return any(route[1] == route[7] == "00000000" for route in routes)


def name_servers() -> list[str]:
    """Return the IPv4 addresses of the machine's name servers that pods can reach.

    The list is empty if the cluster has no access to networks outside this machine.
    """
    if not exists():
        return []
    for path in RESOLV_CONFS:
        if servers := [server for server in read_name_servers(path) if not ipaddress.ip_address(server).is_loopback]:
            return servers
    return []


def read_name_servers(path: Path) -> list[str]:
    """Return the IPv4 addresses in a resolv.conf, in their order. Pods have no IPv6."""
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines()]
    except OSError:
        return []
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return [server for server in servers if is_ipv4(server)]


def is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def resolv_conf() -> str:
    """Return the resolv.conf of the node. Programs in the node cannot use a name server on this machine's loopback."""
    return "".join(f"nameserver {server}\n" for server in name_servers())


def rules(settings: Settings) -> str:
    """Return a script for nft, with one table of rules for the cluster.

    The rules apply NAT to packets that leave the machine. They refuse connections into the cluster from other machines
    and from other clusters of this machine. The first two lines replace an existing table, so the script can run
    several times.
    """
    table = f"table ip {settings.name}"
    sources = f"{settings.gateway}/24, {settings.pod_network}"
    return f"""{table}
delete {table}
{table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ip saddr {{ {sources} }} oifname != "{LINK_PREFIX}*" masquerade
    }}
    chain forward {{
        type filter hook forward priority filter
        oifname "{settings.name}" ct state established,related accept
        oifname "{settings.name}" drop
    }}
}}
"""


def open_way(settings: Settings) -> None:
    """Let the node and its pods reach the networks that this machine reaches.

    If this machine has no default route now, remove the access that an earlier `up` opened. The function can run
    several times, because `up` continues after an interrupted `up`.
    """
    inside = ["nsenter", "--net", "--target", str(processes.init_pid(settings.folder)), "ip", "route"]
    if not exists():
        close_way(settings)
        run([*inside, "flush", "default"])
        return
    run([*inside, "replace", "default", "via", settings.gateway])
    # The rules are set before IP forwarding is switched on. Otherwise, other machines could reach the cluster for a
    # moment.
    run(["nft", "--file", "-"], stdin=rules(settings))
    FORWARDING.write_text("1", "utf-8")


def close_way(settings: Settings) -> None:
    """Remove the cluster's rules. Do nothing if there are none, or if nftables is not installed."""
    try:
        if f"table ip {settings.name}\n" in run(["nft", "list", "tables"]) + "\n":
            run(["nft", "delete", "table", "ip", settings.name])
    except CommandFailed as error:
        if "is not installed" not in str(error):
            raise

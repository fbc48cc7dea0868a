"""Test how a local cluster reaches other networks: the default route, NAT and the DNS servers.

The tests read files that stand for those of a machine. They set no rule and send no packet.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.dev.cluster.node import cluster_dns, config_files, kernel_settings, way_out
from deploy.dev.cluster.settings import Settings

HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
DEFAULT = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
LOCAL = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for a machine with a default route and one name server."""
    monkeypatch.delenv("CLUSTER_WAY_OUT", raising=False)
    monkeypatch.setattr(way_out, "ROUTES", tmp_path / "route")
    monkeypatch.setattr(way_out, "RESOLV_CONFS", (tmp_path / "resolv.conf", tmp_path / "resolved.conf"))
    (tmp_path / "route").write_text(HEADER + LOCAL + DEFAULT)
    (tmp_path / "resolv.conf").write_text("search example.org\nnameserver 203.0.113.53\nnameserver fd00::1\n")
    return tmp_path


def settings(cache: Path = Path("/nowhere"), number: int = 3) -> Settings:
    return Settings("local", cache, "1.37.2", number, "50Mi")


@pytest.mark.usefixtures("machine")
def test_a_machine_with_a_default_route_gives_its_name_servers() -> None:
    assert way_out.exists()
    assert way_out.name_servers() == ["203.0.113.53"]
    assert way_out.resolv_conf() == "nameserver 203.0.113.53\n"


@pytest.mark.parametrize("routes", [HEADER + LOCAL, HEADER, ""])
def test_a_machine_without_a_default_route_has_no_way_out(machine: Path, routes: str) -> None:
    (machine / "route").write_text(routes)
    assert not way_out.exists()
    assert way_out.name_servers() == []
    assert way_out.resolv_conf() == ""


@pytest.mark.usefixtures("machine")
def test_the_user_can_close_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_WAY_OUT", "off")
    assert not way_out.exists()
    assert way_out.name_servers() == []


def test_a_resolver_on_loopback_is_replaced_by_the_servers_behind_it(machine: Path) -> None:
    (machine / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    assert way_out.name_servers() == []
    (machine / "resolved.conf").write_text("nameserver 203.0.113.1\nnameserver 203.0.113.2\n")
    assert way_out.name_servers() == ["203.0.113.1", "203.0.113.2"]


def test_the_rules_translate_what_leaves_the_machine_and_refuse_what_comes_in() -> None:
    rules = way_out.rules(settings(number=4))
    assert 'ip saddr { 10.200.4.1/24, 10.248.0.0/16 } oifname != "sealci-*" masquerade' in rules
    assert 'oifname "sealci-4" ct state established,related accept\n        oifname "sealci-4" drop' in rules
    # The script replaces the table of an earlier `up`, and names no other table.
    assert rules.startswith("table ip sealci-4\ndelete table ip sealci-4\n")
    assert rules.count("table ip") == rules.count("table ip sealci-4") == 3


def test_cluster_dns_forwards_to_the_upstream_servers() -> None:
    corefile = cluster_dns.corefile(["203.0.113.1", "203.0.113.2"])
    assert "    forward . 203.0.113.1 203.0.113.2\n" in corefile
    assert corefile.count("{") == corefile.count("}")


def test_cluster_dns_without_upstream_servers_refuses_at_once(machine: Path) -> None:
    (machine / "route").write_text(HEADER)
    manifest = json.dumps(cluster_dns.manifest(settings()))
    assert "kubernetes cluster.local" in manifest
    assert "forward" not in manifest


def test_the_kubelet_reads_the_node_s_own_resolv_conf() -> None:
    kubelet = config_files.kubelet(settings(), Path("/cluster"), "50Mi")
    assert kubelet["resolvConf"] == "/cluster/resolv.conf"


def test_a_setting_that_another_cluster_saved_is_not_saved_again(tmp_path: Path) -> None:
    cluster = settings(tmp_path)
    record = kernel_settings.record_path(cluster)
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"kernel/panic": "of the machine"}))
    kernel_settings.save(cluster)
    saved = json.loads(record.read_text())
    assert saved["kernel/panic"] == "of the machine"
    assert saved["net/ipv4/ip_forward"] == Path("/proc/sys/net/ipv4/ip_forward").read_text()

"""The sources of settings, their order, and the error messages."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from agent.domain.errors import SettingsError
from agent.settings import PREFIX, Settings, load, settings_of_class


@pytest.fixture(autouse=True)
def no_variables_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def write_settings(folder: Path, text: str) -> Path:
    file = folder / "sealci.yaml"
    file.write_text(text)
    return file


def test_the_defaults_are_complete_and_safe() -> None:
    settings = load(None, {})
    assert settings.model_dump() == Settings().model_dump()
    assert settings.scheduler.tls.enabled
    assert settings.environment.profile == "baseline"
    assert settings.policy.repository_schemes == ("https", "ssh")


def test_later_sources_override_single_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_settings(tmp_path, "agent: {slots: 2, pool: file}\ncluster: {namespace: file, retry_for: 2m}\n")
    monkeypatch.setenv("SEALCI_AGENT__SLOTS", "3")
    monkeypatch.setenv("SEALCI_CLUSTER__NAMESPACE", "env")
    settings = load(file, {"cluster": {"namespace": "flag"}})
    assert (settings.agent.slots, settings.agent.pool) == (3, "file")
    assert (settings.cluster.namespace, settings.cluster.retry_for) == ("flag", 120.0)
    assert settings.cluster.request_timeout == 30.0


def test_a_variable_can_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEALCI_CONFIG", str(write_settings(tmp_path, "agent: {slots: 2}\n")))
    assert load(None, {}).agent.slots == 2


def test_variables_reach_three_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEALCI_SCHEDULER__TLS__ENABLED", "false")
    monkeypatch.setenv("SEALCI_ENVIRONMENT__POD_TEMPLATE", '{"spec": {"priority": 1}}')
    monkeypatch.setenv("SEALCI_POLICY__IMAGES", '["alpine*", "busybox"]')
    settings = load(None, {})
    assert not settings.scheduler.tls.enabled
    assert settings.environment.pod_template == {"spec": {"priority": 1}}
    assert settings.policy.images == ("alpine*", "busybox")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "agent: {slotz: 2}",
            "agent.slotz (SEALCI_AGENT__SLOTZ): there is no such setting, did you mean 'agent.slots'?",
        ),
        ("agnt: {}", "agnt (SEALCI_AGNT): there is no such setting"),
        ("agent: {slots: 0}", "agent.slots (SEALCI_AGENT__SLOTS): Input should be greater than or equal to 1; got 0"),
        ("agent: {slots: many}", "SEALCI_AGENT__SLOTS"),
        ("agent: {pool: Under_Score}", "SEALCI_AGENT__POOL"),
        ("cluster: {retry_for: soon}", "'soon' is not a duration such as"),
        ("cluster: {retry_for: -1}", "is not a duration"),
        ("policy: {max_timeout: 0}", "SEALCI_POLICY__MAX_TIMEOUT"),
        ("policy: {max_memory: lots}", "'lots' is not a quantity such as"),
        ("policy: {max_memory: 64Mi}", "policy.default_memory: 256Mi is over policy.max_memory: 64Mi"),
        ("policy: {max_cpu: 50m}", "policy.default_cpu: 100m is over policy.max_cpu: 50m"),
        (
            "policy: {default_ephemeral_storage: 2Gi, max_ephemeral_storage: 1Gi}",
            "policy.default_ephemeral_storage: 2Gi is over policy.max_ephemeral_storage: 1Gi",
        ),
        (
            "policy: {max_memory: 1Gi, default_memory: ''}",
            "policy.default_memory: must be set, because policy.max_memory",
        ),
        ("policy: {max_memory: '0'}", "'0' must be above 0"),
        ("policy: {default_memory: 1Mi}", "policy.default_memory: 1Mi is below the minimum of 6Mi"),
        ("environment: {workspace_limit: '0'}", "'0' must be above 0"),
        ("environment: {helper_resources: {limit: {}}}", "limit: there is no such key; allowed: requests, limits"),
        ("environment: {helper_resources: {limits: {disk: 1Gi}}}", "limits.disk: there is no such resource"),
        ("environment: {helper_resources: {limits: {memory: '0'}}}", "limits.memory: 0 is below the minimum of 6Mi"),
        (
            "environment: {clone_resources: {limits: {cpu: 100m}, requests: {cpu: '1'}}}",
            "requests.cpu: 1 is over limits.cpu: 100m",
        ),
        ("policy: {repository_hosts: ['https://github.com']}", "is not a pattern HOST[:PORT][/PATH]"),
        ("policy: {credentials: {deploy: ['a b']}}", "is not a pattern HOST[:PORT][/PATH]"),
        ("policy: {credentials: {deploy: []}}", "SEALCI_POLICY__CREDENTIALS__DEPLOY"),
        ("policy: {credentials: {'../x': [github.com]}}", "'../x' is not the name of a Secret"),
        ("policy: {credentials: {sealci-build-0123456789ab: [github.com]}}", "belongs to an action"),
        ("policy: {images: ['a//b']}", "is not an image reference"),
        ("policy: {repository_schemes: [file]}", "SEALCI_POLICY__REPOSITORY_SCHEMES"),
        ("artifacts: {max_file_size: 1 GB}", "is not a quantity"),
        ("environment: {workspace: relative}", "SEALCI_ENVIRONMENT__WORKSPACE"),
        ("scheduler: {tls: {cert_file: a.pem}}", "cert_file and key_file must be set together"),
        ("agent: [1]", "SEALCI_AGENT"),
        ("agent: {slots: 2", "cannot be read"),
        ("- agent", "cannot be read"),
    ],
)
def test_an_error_names_the_key_and_the_cause(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(write_settings(tmp_path, text), {})
    assert message in str(error.value)


def test_one_error_lists_every_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        load(write_settings(tmp_path, "agent: {slots: 0, pool: ''}\nhttp: {port: 70000}\n"), {})
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["SEALCI_SLOTS", "SEALCI_AGENT__SLOTZ", "SEALCI_SCHEDULER__TLS__CA"])
def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"{name}: there is no such setting"):
        load(None, {})


@pytest.mark.parametrize("rest", ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8080_TCP_ADDR"])
def test_service_variables_of_the_kubelet_are_ignored(monkeypatch: pytest.MonkeyPatch, rest: str) -> None:
    monkeypatch.setenv(f"SEALCI_AGENT_METRICS_{rest}", "tcp://10.0.0.1:8080")
    load(None, {})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a file"):
        load(tmp_path / "none.yaml", {})


def test_an_empty_file_changes_no_setting(tmp_path: Path) -> None:
    assert load(write_settings(tmp_path, ""), {}).model_dump() == Settings().model_dump()


def test_sizes_and_durations_are_read_from_text(tmp_path: Path) -> None:
    text = "artifacts: {max_file_size: 64Mi, timeout: 1h30m}\nlogs: {max_line: 1024}\n"
    settings = load(write_settings(tmp_path, text), {})
    assert (settings.artifacts.max_file_size, settings.artifacts.timeout) == (64 << 20, 5400.0)
    assert settings.logs.max_line == 1024


@pytest.mark.parametrize("classic", [{}, {"listen": "192.0.2.1"}, {"cert_file": "c", "key_file": "k"}])
def test_a_classic_agent_that_anyone_may_call_is_refused(classic: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"any peer that reaches .* could run actions: set classic.ca_file"):
        load(None, {"scheduler": {"protocol": "classic", "classic": classic}}, {})
    # With the classic protocol, the agent refuses these settings, because any peer could run actions. With the stream
    # protocol the agent listens on no port, so it accepts the settings.
    load(None, {"scheduler": {"classic": classic}}, {})


@pytest.mark.parametrize(
    "classic",
    [
        {"listen": "127.0.0.1"},
        {"listen": "[::1]"},
        {"listen": "localhost"},
        {"open": True},
        {"ca_file": "a", "cert_file": "c", "key_file": "k"},
        {"callers": ["10.1.0.0/16", "2001:db8::1", "scheduler"]},
    ],
)
def test_a_classic_agent_that_only_its_scheduler_can_call_is_accepted(classic: dict[str, object]) -> None:
    load(None, {"scheduler": {"protocol": "classic", "classic": classic}}, {})


@pytest.mark.parametrize("caller", ["0.0.0.0/0", "::/0", "10.1.2.3/16", "name.example", ""])
def test_callers_are_networks_that_exclude_some_address(caller: str) -> None:
    with pytest.raises(SettingsError, match=r"scheduler\.classic\.callers"):
        load(None, {"scheduler": {"classic": {"callers": [caller]}}}, {})


@pytest.mark.parametrize("address", ["https://h:443", "foo", "foo:bar", "h:443/x", "::1:443", ""])
def test_an_address_that_grpc_would_dial_for_ever_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match=r"scheduler\.address"):
        load(None, {"scheduler": {"address": address}}, {})


@pytest.mark.parametrize(
    "address", ["h:443", "scheduler.x.svc:7080", "127.0.0.1:1", "[::1]:7080", "dns:///h:443", "unix:/a"]
)
def test_an_address_of_a_host_and_a_port_is_accepted(address: str) -> None:
    assert load(None, {"scheduler": {"address": address}}, {}).scheduler.address == address


def test_a_lease_that_ends_before_its_renewal_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"lease_renew \(5 s\) must be shorter than lease_duration \(5 s\)"):
        load(None, {"cluster": {"lease_duration": "5s", "lease_renew": "5s"}}, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_cpu": "1", "default_cpu": "2"},
            "environment.classes.large: policy.default_cpu: 2 is over policy.max_cpu: 1",
        ),
        (
            {"max_memory": "128Mi"},
            "environment.classes.large: policy.default_memory: 256Mi is over policy.max_memory: 128Mi",
        ),
        ({"profil": "restricted"}, "environment.classes.large.profil "),
        (
            {"pod_template": {"spec": {"hostPID": True}}},
            "Value error, spec.hostPID: must not be set, because stop signals go to all processes",
        ),
    ],
)
def test_a_class_must_fit_the_rest_of_the_policy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        load(None, {"environment": {"classes": {"large": settings}}})
    assert message in str(wrong.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"proxy": {"https": "http://me:word@proxy:1"}},
        {"proxy": {"http": "proxy:1"}},
        {"git_ca": "a path"},
        {"git_config": "x" * ((16 << 10) + 1)},
        {"image_pull_secrets": ["Not a name"]},
    ],
)
def test_settings_for_what_is_outside_are_checked(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(SettingsError, match=f"environment.{name}"):
        load(None, {"environment": settings})


def test_a_class_has_a_name_that_a_label_can_hold() -> None:
    with pytest.raises(SettingsError, match=r"environment.classes.Large"):
        load(None, {"environment": {"classes": {"Large": {}}}})


def test_a_class_replaces_only_what_it_names() -> None:
    classes = {"large": {"default_memory": "8Gi", "images": ["debian:*"], "profile": "restricted"}, "plain": {}}
    settings = load(None, {"environment": {"classes": classes}, "policy": {"max_timeout": "1h"}})
    large = settings_of_class(settings, "large")
    assert (large.policy.default_memory, large.policy.images) == ("8Gi", ("debian:*",))
    assert (large.policy.default_cpu, large.policy.max_timeout) == ("100m", 3600.0)
    assert large.environment.profile == "restricted"
    assert settings_of_class(settings, "plain").policy == settings.policy
    assert settings_of_class(settings, "unknown") is settings


@pytest.mark.parametrize(
    ("warm", "message"),
    [
        ({"pools": [{"image": "debian:13", "class": "big"}]}, "warm.pools[0].class: there is no class 'big'"),
        ({"learn": {"classes": ["large", "big"]}}, "warm.learn.classes[1]: there is no class 'big'"),
        ({"pools": [{"image": "debian:13", "class": "Big"}]}, "warm.pools.0.class"),
        (
            {"pools": [{"image": "debian:13"}, {"image": "alpine:3", "class": "large"}]},
            "environment.classes.large.images",
        ),
    ],
)
def test_warm_pods_of_a_class_that_no_action_could_get_are_refused(warm: dict[str, Any], message: str) -> None:
    environment = {"classes": {"large": {"images": ["debian:*"]}, "small": {}}}
    with pytest.raises(SettingsError, match=re.escape(message)) as refused:
        load(None, {"environment": environment, "warm": warm}, {})
    assert "'big'" not in message or "there are: large, small" in str(refused.value)


def test_the_class_of_a_warm_pool_is_written_as_it_is_read() -> None:
    pools = [{"image": "debian:13", "class": "large"}]
    settings = load(None, {"environment": {"classes": {"large": {}}}, "warm": {"pools": pools}}, {})
    assert settings.warm.pools[0].environment_class == "large"
    written = settings.model_dump(mode="json")
    assert written["warm"]["pools"][0]["class"] == "large"
    assert load(None, written, {}).model_dump() == settings.model_dump()

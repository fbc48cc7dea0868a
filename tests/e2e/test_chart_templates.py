"""The rendered chart: helm lint reports nothing, and a real API server accepts the rendered objects.

If the values have a wrong key, the error of helm names this key. The API server checks PodMonitor, PrometheusRule and
ScaledObject with the CustomResourceDefinitions of their projects. These definitions come from Go modules. The tests do
not delete them from the cluster.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.domain.json import Object
from agent.settings import Settings, load
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, DEBIAN, new_namespace, until
from tests.e2e.release import CHART, helm, values_files

FILES = values_files()
NAMES = [file.name.removesuffix("-values.yaml") for file in FILES]
NAMESPACE = "sealci-ci-template"
CUSTOM = {
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
    "github.com/kedacore/keda/v2@v2.21.0": ("config/crd/bases/keda.sh_scaledobjects.yaml",),
}
MINIMAL = {"scheduler": {"address": "scheduler.example.org:443"}}


def template(values: Object, *arguments: str) -> list[Object]:
    """Return the Kubernetes objects that helm renders from the chart with `values`."""
    done = helm("template", "rel", str(CHART), *(arguments or ("--namespace", NAMESPACE)), values=values)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Return those of the objects that have this kind, such as `Deployment`."""
    return [each for each in objects if each["kind"] == kind]


def settings_of(objects: list[Object], folder: Path) -> Settings:
    """Return the settings in the ConfigMap of the rendered agents, read as an agent reads them."""
    (found,) = (each for each in of_kind(objects, "ConfigMap") if "settings.yaml" in each["data"])
    file = folder / "settings.yaml"
    file.write_text(found["data"]["settings.yaml"])
    return load(file, {}, {})


@pytest.fixture(scope="module")
def custom_kinds() -> None:
    """Install the CustomResourceDefinitions of PodMonitor, PrometheusRule and ScaledObject into the cluster."""
    for module, paths in CUSTOM.items():
        done = subprocess.run(
            ["go", "mod", "download", "-json", module], capture_output=True, text=True, check=True, timeout=120
        )
        folder = Path(json.loads(done.stdout)["Dir"])
        for path in paths:
            kube.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(folder / path))
    kinds = ("podmonitors.monitoring.coreos.com", "prometheusrules.monitoring.coreos.com", "scaledobjects.keda.sh")
    for kind in kinds:
        kube.kubectl("wait", "--for=condition=established", f"crd/{kind}", "--timeout=60s")


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_helm_lint_reports_nothing(file: Path) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(file))
    assert done.returncode == 0, done.stdout
    assert "0 chart(s) failed" in done.stdout


@pytest.mark.parametrize("file", FILES, ids=NAMES)
@pytest.mark.usefixtures("custom_kinds")
def test_the_api_server_accepts_the_objects_of_the_chart(file: Path, namespace: str, tmp_path: Path) -> None:
    values = yaml.safe_load(file.read_text())
    apart = "cluster" in values
    # By default the chart creates a namespace for actions. A dry run does not create it, so the values name an existing
    # namespace.
    values["cluster"] = {**values.get("cluster", {}), "namespace": namespace}
    # `--no-hooks` leaves out the pod of `helm test`. This pod needs a ServiceAccount, which a dry run does not create.
    # test_chart.py runs this pod.
    objects = template(values, "--no-hooks", "--namespace", namespace if not apart else "default")
    words = ("apply", "--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict", "--filename", "-")
    output = kube.kubectl(*words, input=yaml.safe_dump_all(objects))
    assert len(output.splitlines()) == len(objects)
    settings = settings_of(objects, tmp_path)
    assert settings.cluster.namespace == namespace
    # The chart renders a Secret only for the token of the demo scheduler.
    assert bool(of_kind(objects, "Secret")) == ("demoScheduler" in values)
    assert not of_kind(objects, "ClusterRole")


def test_the_default_values_give_the_agents_default_settings(tmp_path: Path) -> None:
    settings, defaults = settings_of(template(MINIMAL), tmp_path).model_dump(), Settings().model_dump()
    name = f"{NAMESPACE}-rel-sealci-agent"
    assert settings["agent"].pop("anchor") == f"{name}-anchor"
    assert settings["agent"].pop("pool") == name
    assert settings["cluster"].pop("namespace") == f"{NAMESPACE}-actions"
    assert settings["environment"].pop("image") == "sealci/agent:0.1.0"
    assert settings["environment"].pop("pod_template") == {"spec": {"serviceAccountName": f"{name}-actions"}}
    assert settings["scheduler"].pop("address") == "scheduler.example.org:443"
    for section, keys in settings.items():
        assert keys == {key: defaults[section][key] for key in keys}


def test_credentials_are_mounted_from_existing_secrets(tmp_path: Path) -> None:
    (hardened,) = (file for file in FILES if file.name.startswith("hardened"))
    objects = template(yaml.safe_load(hardened.read_text()))
    scheduler = settings_of(objects, tmp_path).scheduler
    assert scheduler.token_file == Path("/etc/sealci/token/token")
    assert scheduler.tls.ca_file == Path("/etc/sealci/ca/ca.crt")
    assert scheduler.tls.cert_file == Path("/etc/sealci/certificate/tls.crt")
    (deployment,) = of_kind(objects, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert {name: mounted[name] for name in ("token", "ca", "certificate")} == {
        "token": "/etc/sealci/token",
        "ca": "/etc/sealci/ca",
        "certificate": "/etc/sealci/certificate",
    }
    # A mount with subPath is never updated, so an agent would miss a rotated token.
    assert not [each for each in pod["containers"][0]["volumeMounts"] if "subPath" in each]
    names = {each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
    assert names == {"sealci-token", "sealci-ca", "sealci-certificate"}


WRONG: dict[str, tuple[Object, str]] = {
    "a word for a number": ({"agent": {"slots": "many"}}, "/agent/slots"),
    "no such setting": ({"agent": {"slts": 3}}, "'slts'"),
    "no such section": ({"agents": {}}, "'agents'"),
    "no such protocol": ({"scheduler": {"protocol": "smoke"}}, "/scheduler/protocol"),
    "no duration": ({"agent": {"drain_timeout": "soon"}}, "/agent/drain_timeout"),
    "no size": ({"artifacts": {"max_file_size": "64MB"}}, "/artifacts/max_file_size"),
    "no profile": ({"environment": {"profile": "privileged"}}, "/environment/profile"),
    "too few": ({"agent": {"slots": 0}}, "/agent/slots"),
    "what the chart sets": ({"agent": {"anchor": "mine"}}, "'anchor'"),
    "a secret as a value": ({"credentials": {"token": {"value": "secret"}}}, "'value'"),
    "a switch that is none": ({"podMonitor": {"enabled": "maybe"}}, "/podMonitor/enabled"),
    "no scheduler": ({"scheduler": {"address": ""}}, "scheduler.address must be set"),
    "everyone may run actions": ({"scheduler": {"address": "s:1", "protocol": "classic"}}, "schedulerFrom or"),
    "no classic demo": (
        {"scheduler": {"address": "", "protocol": "classic"}, "demoScheduler": {"enabled": True}},
        "does not support classic",
    ),
    "a proxy with a password": ({"proxy": {"https": "http://me:word@proxy:1"}}, "/proxy/https"),
    "two autoscalers": ({"autoscaling": {"enabled": True}, "keda": {"enabled": True}}, "autoscaling.enabled and keda"),
    "a quantity of another system": ({"policy": {"max_memory": "4GB"}}, "/policy/max_memory"),
    "a quantity of Kubernetes": ({"resources": {"limits": {"memory": "lots"}}}, "/resources/limits/memory"),
    "an address with a scheme": ({"scheduler": {"address": "https://h:443"}}, "/scheduler/address"),
    "an address without a port": ({"scheduler": {"address": "foo"}}, "/scheduler/address"),
    "an address with a name for a port": ({"scheduler": {"address": "foo:bar"}}, "/scheduler/address"),
    "a lease that ends before its renewal": (
        {"cluster": {"lease_duration": "5s", "lease_renew": "10s"}},
        "cluster.lease_renew must be shorter",
    ),
    "a lease that ends at its renewal": (
        {"cluster": {"lease_duration": "5s", "lease_renew": "5s"}},
        "cluster.lease_renew must be shorter",
    ),
    "more replicas at least than at most": (
        {"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}},
        "autoscaling.minReplicas must not be larger than autoscaling.maxReplicas",
    ),
    "no claim to delete from": ({"cachePrune": {"schedule": "@daily"}}, "cachePrune.schedule: is for"),
    "no namespace of its own": (
        {"actions": {"createNamespace": True}, "cluster": {"namespace": NAMESPACE}},
        "cluster.namespace must not be",
    ),
}


@pytest.mark.parametrize(("values", "says"), WRONG.values(), ids=WRONG)
def test_wrong_values_are_refused_with_their_key(values: Object, says: str) -> None:
    done = helm("template", "rel", str(CHART), "--namespace", NAMESPACE, values={**MINIMAL, **values})
    assert done.returncode != 0
    assert says in done.stderr


@pytest.mark.parametrize(
    ("drain", "grace", "delete", "seconds"),
    [("10m", "10s", "1m", 820), ("1h30m", "10s", "1m", 5620), (90, 5, 1.5, 189), ("1d", "0s", "30s", 86550)],
)
def test_the_grace_of_the_agents_pods_follows_from_the_drain_time(
    drain: Any, grace: Any, delete: Any, seconds: int
) -> None:
    values = {"agent": {"drain_timeout": drain}, "environment": {"grace": grace}, "cluster": {"delete_timeout": delete}}
    (deployment,) = of_kind(template({**MINIMAL, **values}), "Deployment")
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == seconds


def test_a_frozen_agent_is_killed_soon() -> None:
    """After a failed liveness or startup probe, the kubelet waits only 10 s between SIGTERM and SIGKILL.

    A frozen agent does not react to SIGTERM, so it does not need the longer time for a drain.
    """
    (deployment,) = of_kind(template(MINIMAL), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for name in ("livenessProbe", "startupProbe"):
        assert container[name]["terminationGracePeriodSeconds"] == 10
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] + 10 <= 30


def test_kinds_that_the_cluster_does_not_know_are_left_out_by_default() -> None:
    kinds = ("PodMonitor", "PrometheusRule")
    known = [word for kind in kinds for word in ("--api-versions", f"monitoring.coreos.com/v1/{kind}")]
    on, off = ({section: {"enabled": value} for section in ("podMonitor", "prometheusRule")} for value in (True, False))

    def monitors(values: Object, *arguments: str) -> bool:
        return bool(of_kind(template({**MINIMAL, **values}, *arguments), "PodMonitor"))

    assert not monitors({})
    assert monitors({}, *known)
    assert monitors(on)
    assert not monitors(off, *known)


def test_a_long_name_stays_unique_and_valid() -> None:
    long = {"fullnameOverride": "an-agent-with-a-name-that-nobody-wants-to-type"}
    objects = template({**MINIMAL, **long})
    names = {each["metadata"]["name"] for each in objects}
    assert max(map(len, names)) <= 63
    other = helm("template", "rel", str(CHART), "--namespace", "another", values={**MINIMAL, **long})
    roles = [of_kind(each, "Role")[0] for each in (objects, list(yaml.safe_load_all(other.stdout)))]
    assert roles[0]["metadata"]["name"] != roles[1]["metadata"]["name"]


def test_only_a_classic_scheduler_reaches_the_port_for_actions(tmp_path: Path) -> None:
    (file,) = (each for each in FILES if each.name.startswith("classic"))
    values = yaml.safe_load(file.read_text())
    objects = template(values)
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "actions", "containerPort": 7081, "protocol": "TCP"} in container["ports"]
    assert settings_of(objects, tmp_path).scheduler.classic.open
    policy = next(each for each in of_kind(objects, "NetworkPolicy") if "actions" not in each["metadata"]["name"])
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    peers = values["networkPolicy"]["agent"]["schedulerFrom"]
    assert policy["spec"]["ingress"] == [{"ports": [{"port": 7081}], "from": peers}]


def test_a_classic_scheduler_dials_one_address_for_all_agents(tmp_path: Path) -> None:
    (file,) = (each for each in FILES if each.name.startswith("classic"))
    values = yaml.safe_load(file.read_text())
    values["scheduler"]["classic"]["port"] = 7099
    objects = template(values)
    (service,) = of_kind(objects, "Service")
    (deployment,) = of_kind(objects, "Deployment")
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert "publishNotReadyAddresses" not in service["spec"]
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (7099, "actions")
    classic = settings_of(objects, tmp_path).scheduler.classic
    assert (classic.host, classic.port) == (f"{service['metadata']['name']}.{NAMESPACE}.svc", 7099)
    values["scheduler"]["classic"]["host"] = "agents.example.org"
    assert settings_of(template(values), tmp_path).scheduler.classic.host == "agents.example.org"
    assert not of_kind(template(MINIMAL), "Service")


def test_autoscalers_own_the_number_of_replicas() -> None:
    for values in ({"autoscaling": {"enabled": True}}, {"keda": {"enabled": True, "serverAddress": "http://p:9090"}}):
        (deployment,) = of_kind(template({**MINIMAL, **values}), "Deployment")
        assert "replicas" not in deployment["spec"]
    (deployment,) = of_kind(template({**MINIMAL, "replicaCount": 3}), "Deployment")
    assert deployment["spec"]["replicas"] == 3


# ---- what other charts have


def pod_of_agents(objects: list[Object]) -> Object:
    """Return the spec of the agents' pods."""
    (deployment,) = of_kind(objects, "Deployment")
    found: Object = deployment["spec"]["template"]["spec"]
    return found


def test_the_pods_of_agents_have_further_containers_dns_and_a_runtime_class() -> None:
    extra: Object = {
        "initContainers": [{"name": "wait", "image": "busybox"}],
        "extraContainers": [{"name": "log-shipper", "image": "shipper"}],
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["scheduler"]}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["192.0.2.53"]},
        "runtimeClassName": "gvisor",
    }
    objects = template({**MINIMAL, **extra, "revisionHistoryLimit": 7})
    spec = pod_of_agents(objects)
    same = {name: value for name, value in extra.items() if name != "extraContainers"}
    assert {name: spec[name] for name in same} == same
    assert [each["name"] for each in spec["containers"]] == ["agent", "log-shipper"]
    assert of_kind(objects, "Deployment")[0]["spec"]["revisionHistoryLimit"] == 7
    (doctor,) = (each["spec"] for each in of_kind(objects, "Pod"))
    assert (doctor["dnsConfig"], doctor["hostAliases"]) == (extra["dnsConfig"], extra["hostAliases"])
    default = pod_of_agents(template(MINIMAL))
    assert default["dnsPolicy"] == "ClusterFirst"
    assert not default.keys() & {"initContainers", "hostAliases", "dnsConfig", "runtimeClassName"}


def test_every_object_has_the_common_annotations_beside_its_own() -> None:
    on = {"enabled": True}
    values: Object = {}
    for file in FILES:
        values |= yaml.safe_load(file.read_text()) if file.name.startswith(("hardened", "scaled")) else {}
    # `extraObjects` are objects of the user, who writes their annotations.
    del values["extraObjects"]
    values |= {
        "commonAnnotations": {"team": "platform"},
        "demoScheduler": {**on, "persistence": on},
        "metricsService": on,
        "podMonitor": on,
        "prometheusRule": on,
        "serviceAccount": {"annotations": {"own": "account"}},
        "dashboard": {**on, "annotations": {"own": "dashboard"}},
    }
    objects = template(values)
    assert len({each["kind"] for each in objects}) >= 18
    without = [each["kind"] for each in objects if each["metadata"].get("annotations", {}).get("team") != "platform"]
    assert without == []
    assert {each["metadata"]["annotations"].get("own") for each in objects} == {None, "account", "dashboard"}


def test_a_service_for_metrics_reaches_every_agent() -> None:
    values = {**MINIMAL, "metricsService": {"enabled": True, "annotations": {"prometheus.io/scrape": "true"}}}
    objects = template(values)
    (service,) = of_kind(objects, "Service")
    assert service["metadata"]["annotations"] == {"prometheus.io/scrape": "true"}
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert service["spec"]["selector"] == of_kind(objects, "Deployment")[0]["spec"]["selector"]["matchLabels"]
    assert [each["port"] for each in service["spec"]["ports"]] == [8080]


def test_one_value_sets_the_proxy_of_agents_clones_and_commands(tmp_path: Path) -> None:
    proxy = {"http": "http://proxy.example.org:3128", "https": "http://proxy.example.org:3129", "noProxy": "10.0.0.0/8"}
    objects = template({**MINIMAL, "proxy": proxy})
    variables = {each["name"]: each.get("value") for each in pod_of_agents(objects)["containers"][0]["env"]}
    assert variables["HTTP_PROXY"] == variables["http_proxy"] == proxy["http"]
    assert variables["HTTPS_PROXY"] == variables["https_proxy"] == proxy["https"]
    direct = "$(KUBERNETES_SERVICE_HOST),localhost,127.0.0.1,.svc,10.0.0.0/8"
    assert variables["NO_PROXY"] == variables["no_proxy"] == direct
    found = settings_of(objects, tmp_path).environment.proxy
    assert (found.http, found.https, found.no_proxy) == (proxy["http"], proxy["https"], proxy["noProxy"])
    ports = policies({**MINIMAL, "proxy": proxy})[""]["egress"][1]["ports"]
    assert {"port": 3128} in ports
    assert {"port": 3129} in ports
    assert "NO_PROXY" not in {each["name"] for each in pod_of_agents(template(MINIMAL))["containers"][0]["env"]}


def test_images_are_pulled_beforehand_with_the_pull_secrets_of_actions() -> None:
    environment = {
        "image_pull_secrets": ["first"],
        "pod_template": {"spec": {"imagePullSecrets": [{"name": "second"}]}},
    }
    objects = template({**MINIMAL, "environment": environment, "prepull": {"images": [BUSYBOX]}})
    (found,) = of_kind(objects, "DaemonSet")
    assert found["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "second"}, {"name": "first"}]


def test_a_cron_job_deletes_old_entries_from_the_claim_of_caches(namespace: str) -> None:
    caches = {"store": "claim", "claim": "ci-caches", "sign_key_file": "/key"}
    prune = {"schedule": "17 3 * * *", "maxBytes": "200Gi"}
    for profile, user in (("baseline", 0), ("restricted", 1000)):
        environment = {"profile": profile, "user": 1000}
        values = {**MINIMAL, "caches": caches, "cachePrune": prune, "environment": environment}
        objects = template({**values, "cluster": {"namespace": namespace}})
        (found,) = of_kind(objects, "CronJob")
        kube.apply(found)  # the API server knows all fields
        pod = found["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["args"] == ["cache", "prune", "--folder=/caches", "--older-than=30d", "--max-bytes=200Gi"]
        assert (container["securityContext"]["runAsUser"], pod["volumes"][0]["persistentVolumeClaim"]) == (
            user,
            {"claimName": "ci-caches"},
        )
        (role,) = of_kind(objects, "Role")
        (rule,) = (each for each in role["rules"] if each["resources"] == ["persistentvolumeclaims"])
        assert (rule["verbs"], rule["resourceNames"]) == (["get"], ["ci-caches"])
    assert not of_kind(template(MINIMAL), "CronJob")


def test_a_class_keeps_null_so_that_it_can_remove_a_field(tmp_path: Path) -> None:
    (file,) = (each for each in FILES if each.name.startswith("classes"))
    classes = settings_of(template(yaml.safe_load(file.read_text())), tmp_path).environment.classes
    (action,) = classes["image-build"].pod_template["spec"]["containers"]
    assert action["securityContext"] == {"seccompProfile": None}


# ---- safe defaults


def policies(values: Object) -> dict[str, Object]:
    """Return the spec of each NetworkPolicy that helm renders from `values`.

    The keys are the names of the policies without the name of the release.
    """
    found = of_kind(template(values), "NetworkPolicy")
    return {each["metadata"]["name"].partition("sealci-agent")[2].strip("-"): each["spec"] for each in found}


def test_actions_have_a_namespace_of_their_own_with_pod_security() -> None:
    objects = template(MINIMAL)
    (namespace,) = of_kind(objects, "Namespace")
    assert namespace["metadata"]["name"] == f"{NAMESPACE}-actions"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
    (role,) = of_kind(objects, "Role")
    assert role["metadata"]["namespace"] == f"{NAMESPACE}-actions"
    # If the values name the namespace of actions, the chart does not create this namespace, even if it is the namespace
    # of the release.
    for name in ("team-a", NAMESPACE):
        objects = template({**MINIMAL, "cluster": {"namespace": name}})
        assert not of_kind(objects, "Namespace")
        assert of_kind(objects, "Role")[0]["metadata"]["namespace"] == name


def test_the_namespace_of_actions_is_legal_for_a_long_namespace(tmp_path: Path) -> None:
    objects = template(MINIMAL, "--namespace", "a" * 63)
    (namespace,) = of_kind(objects, "Namespace")
    assert settings_of(objects, tmp_path).cluster.namespace == namespace["metadata"]["name"]


def test_the_demo_scheduler_asks_for_random_tokens_and_admits_only_agents(tmp_path: Path) -> None:
    demo: Object = {"demoScheduler": {"enabled": True}}
    objects, again = template(demo), template(demo)
    (secret,), (other,) = of_kind(objects, "Secret"), of_kind(again, "Secret")
    tokens = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    assert {key: len(value) for key, value in tokens.items()} == {"token": 40, "submit-token": 40}
    assert tokens["token"] != tokens["submit-token"]
    assert not set(secret["data"].values()) & set(other["data"].values())
    name = "rel-sealci-agent-scheduler"
    assert secret["metadata"]["name"] == name
    assert settings_of(objects, tmp_path).scheduler.token_file == Path("/etc/sealci/token/token")
    for deployment in of_kind(objects, "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        secrets = {each["name"]: each["secret"] for each in pod["volumes"] if "secret" in each}
        # The volume `token` has only the token with which agents register, and not the token for `submit`.
        assert secrets.pop("token") == {"secretName": name, "items": [{"key": "token", "path": "token"}]}
        assert list(secrets) == (["submit"] if deployment["metadata"]["name"] == name else [])
    (scheduler,) = (each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] == name)
    arguments = scheduler["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {
        "--token-file=/etc/sealci/token/token",
        "--submit-token-file=/etc/sealci/submit/submit-token",
    } <= set(arguments)
    peer = {"ipBlock": {"cidr": "192.0.2.0/24"}}
    (rule,) = policies({"demoScheduler": {"enabled": True, "from": [peer]}})["scheduler"]["ingress"]
    components = [each["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for each in rule["from"][:-1]]
    assert components == ["agent", "doctor"]
    assert rule["from"][-1] == peer
    own = template({**demo, "credentials": {"token": {"existingSecret": "mine", "key": "k"}}})
    assert [list(each["data"]) for each in of_kind(own, "Secret")] == [["submit-token"]]


def test_only_named_peers_reach_the_http_port_of_agents() -> None:
    assert policies(MINIMAL)[""]["ingress"] == []
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    spec = policies({**MINIMAL, "networkPolicy": {"agent": {"metricsFrom": [peer]}}})[""]
    assert spec["ingress"] == [{"ports": [{"port": 8080}], "from": [peer]}]


@pytest.mark.parametrize(
    ("endpoint", "port"), [("http://collector:4318", 4318), ("http://collector", 80), ("https://[::1]:4319/x", 4319)]
)
def test_agents_reach_their_collector_of_traces(endpoint: str, port: int) -> None:
    ports = policies({**MINIMAL, "traces": {"endpoint": endpoint}})[""]["egress"][1]["ports"]
    assert {"port": port} in ports


METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200", "fd00:ec2::23")


def reachable(values: Object, address: str, port: int) -> bool:
    """Return whether the NetworkPolicy of actions admits a connection to an address outside the cluster."""
    ip = ipaddress.ip_address(address)
    for rule in policies(values)["actions"]["egress"]:
        if "ports" in rule and port not in [each["port"] for each in rule["ports"]]:
            continue
        for block in (each["ipBlock"] for each in rule["to"] if "ipBlock" in each):
            inside, outside = ipaddress.ip_network(block["cidr"]), map(ipaddress.ip_network, block.get("except", ()))
            if ip in inside and not any(ip in each for each in outside):
                return True
    return False


@pytest.mark.parametrize("address", [*METADATA, "fe80::a9fe:a9fe", "fd00:ec2::254"])
def test_actions_reach_no_metadata_service(address: str) -> None:
    assert not reachable(MINIMAL, address, 80)


def test_private_addresses_can_be_switched_off() -> None:
    private = ("10.96.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12::1")
    off = {**MINIMAL, "networkPolicy": {"actions": {"privateRanges": False}}}
    for address in (*private, "192.0.2.1", "2001:db8::1"):
        assert reachable(MINIMAL, address, 443)
        assert reachable(off, address, 443) == (address not in private)
    assert reachable(off, "169.254.20.10", 53)
    assert not reachable(off, "169.254.20.10", 80)


def test_actions_and_agents_reach_their_object_store() -> None:
    store = {"issuer": "agent", "endpoint": "http://10.1.2.3:9000", "bucket": "b"}
    off = {"actions": {"privateRanges": False}}
    to = {"objects": {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "port": 9000}}
    unnamed, named = ({**MINIMAL, "objects": store, "networkPolicy": each} for each in (off, {**off, **to}))
    assert not reachable(unnamed, "10.1.2.3", 9000)
    assert reachable(named, "10.1.2.3", 9000)
    assert not reachable(named, "10.1.2.3", 9001)
    assert not reachable(named, "10.1.2.4", 9000)
    found = policies(named)[""]["egress"]
    assert {"port": 9000} in found[1]["ports"]
    assert {"ports": [{"port": 9000}], "to": to["objects"]["to"]} in found
    # An agent whose scheduler signs the URLs does not use the store itself.
    signed = policies({**MINIMAL, "objects": {"issuer": "scheduler"}})[""]["egress"]
    assert [each["port"] for each in signed[1]["ports"]] == [
        each["port"] for each in policies(MINIMAL)[""]["egress"][1]["ports"]
    ]


def test_the_nodes_pull_images_beforehand_as_volumes_or_by_a_shell() -> None:
    images = [BUSYBOX, DEBIAN]
    with new_namespace("pod-security.kubernetes.io/enforce=restricted") as namespace:
        values = {
            **MINIMAL,
            "cluster": {"namespace": namespace},
            "prepull": {"images": images},
            "environment": {
                "image": Settings().environment.image,
                "pod_template": {"spec": {"tolerations": [{"key": "ci", "operator": "Exists"}]}},
            },
        }
        for version in ("1.34.0", "1.37.0"):
            objects = template(values, "--namespace", NAMESPACE, "--kube-version", version)
            (found,) = of_kind(objects, "DaemonSet")
            spec = found["spec"]["template"]["spec"]
            assert [each["image"] for each in spec.get("initContainers", ())] == (images if "34" in version else [])
            volumes = [each["image"]["reference"] for each in spec.get("volumes", ())]
            assert volumes == ([] if "34" in version else images)
            assert spec["tolerations"][0]["key"] == "ci"
            found["metadata"]["name"] += version.replace(".", "-")
            found["spec"]["selector"]["matchLabels"]["version"] = version
            found["spec"]["template"]["metadata"]["labels"]["version"] = version
            if "34" in version or kube.version() >= (1, 35):
                kube.apply(found)

        def all_ready() -> bool:
            statuses = [each.get("status", {}) for each in kube.get("daemonsets", "-n", namespace)]
            return all(each.get("numberReady", 0) == each.get("desiredNumberScheduled", -1) for each in statuses)

        until(all_ready, "the images were not pulled", 90)
    assert not of_kind(template(MINIMAL), "DaemonSet")


def test_placeholders_yield_to_actions_and_stay_where_actions_run() -> None:
    template_spec = {"nodeSelector": {"pool": "ci"}, "tolerations": [{"key": "ci", "operator": "Exists"}]}
    values = {**MINIMAL, "environment": {"pod_template": {"spec": template_spec}}}
    objects = template({**values, "placeholders": {"replicas": 3, "nodeSelector": {"pool": "gpu"}}})
    (found,) = (each for each in of_kind(objects, "Deployment") if "placeholder" in each["metadata"]["name"])
    (priority,) = of_kind(objects, "PriorityClass")
    spec = found["spec"]["template"]["spec"]
    assert (found["metadata"]["namespace"], found["spec"]["replicas"]) == (f"{NAMESPACE}-actions", 3)
    assert (priority["value"], priority["preemptionPolicy"]) == (-1, "Never")
    assert (spec["priorityClassName"], spec["nodeSelector"]) == (priority["metadata"]["name"], {"pool": "gpu"})
    assert spec["tolerations"] == template_spec["tolerations"]
    objects = template({**values, "placeholders": {"replicas": 1, "priorityClassName": "idle"}})
    assert not of_kind(objects, "PriorityClass")
    (found,) = (each for each in of_kind(objects, "Deployment") if "placeholder" in each["metadata"]["name"])
    assert found["spec"]["template"]["spec"]["priorityClassName"] == "idle"
    assert not [each for each in template(values) if "placeholder" in each["metadata"]["name"]]

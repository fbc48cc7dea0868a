"""The manifests of the pod and the Secret of an attempt, property by property."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cluster.pod import action_order, labels, manifest
from agent.cluster.pod.manifest import Plan
from agent.cluster.pod.recreate import recreation_manifest, secret_of_older_agent
from agent.domain.actions import Action, ArtifactRules, Key, Repository, Resources, When
from agent.domain.artifacts import Input
from agent.domain.json import Object
from agent.domain.references.secret_name import checked_secret_name
from agent.settings import Settings, settings_of_class

CHART = Path(__file__).parents[4] / "charts" / "sealci-agent"
SETTINGS = Settings()
RESTRICTED = Settings.model_validate({"environment": {"profile": "restricted"}})
ACTION = Action(
    Key("build/1", 2, 3),
    "alpine:3",
    ("echo $HOME", "true"),
    env={"A": "$(B) $$ $"},
    secrets={"TOKEN": "hunter2-hunter2"},
)
REPOSITORY = Repository("https://example.org/r", "main", 1, credentials="deploy")
NO_DISK, DISK = {"ephemeral-storage": "0"}, {"ephemeral-storage": "10Gi"}
PLAN = Plan(ACTION, "sealci-build-1", "ci", "agent-1", "0123456789abcdef", timeout=60.0)
CLONING = replace(PLAN, action=replace(ACTION, repository=REPOSITORY))
WITH_INPUTS = replace(PLAN, action=replace(ACTION, inputs=(Input("build", "", ()),)))
WITHOUT_FILES = replace(PLAN, action=replace(ACTION, artifacts=ArtifactRules(when=When.NEVER)))


def containers(pod: Object) -> dict[str, Object]:
    return {each["name"]: each for each in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])}


def environment(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def expand(text: str) -> str:
    """Expand `$$` to `$`, as the kubelet does in commands and values of environment variables."""
    return text.replace("$$", "\0").replace("\0", "$")


@pytest.mark.parametrize("settings", [SETTINGS, RESTRICTED], ids=["baseline", "restricted"])
@pytest.mark.parametrize("plan", [PLAN, CLONING, WITHOUT_FILES], ids=["plain", "cloning", "without files"])
def test_properties_of_every_pod(settings: Settings, plan: Plan) -> None:
    pod = manifest.pod(plan, settings)
    spec = pod["spec"]
    json.dumps(pod)
    assert spec["restartPolicy"] == "Never"
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    # This profile holds for containers that an admission webhook adds.
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert isinstance(spec["activeDeadlineSeconds"], int)
    volumes = {each["name"] for each in spec["volumes"]}
    for each in containers(pod).values():
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
        assert each["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "privileged" not in each["securityContext"]
        assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
        assert sum(len(argument) for argument in each["command"]) < 1 << 20
    assert "hunter2" not in json.dumps(pod)
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]


def test_every_pod_has_a_helper_and_it_comes_first() -> None:
    for plan in (PLAN, WITHOUT_FILES):
        assert [each["name"] for each in manifest.pod(plan, SETTINGS)["spec"]["containers"]] == ["helper", "action"]
    assert WITHOUT_FILES.wants_files is False


def test_labels_match_the_selector_and_annotations_hold_the_session() -> None:
    settings = Settings.model_validate({"environment": {"labels": {"team": "a", labels.POOL: "stolen"}}})
    metadata = manifest.pod(replace(PLAN, owner={"kind": "ConfigMap", "name": "anchor"}), settings)["metadata"]
    assert metadata["labels"] == {
        "team": "a",
        "app.kubernetes.io/managed-by": "sealci-agent",
        "app.kubernetes.io/name": "sealci-action",
        "sealci.dev/pool": "default",
        "sealci.dev/agent": "agent-1",
        "sealci.dev/action": labels.action_hash("build/1"),
        "sealci.dev/attempt": "2",
        "sealci.dev/claim": "3",
    }
    selector = dict(part.split("=") for part in labels.pool_selector("default").split(","))
    assert selector.items() <= metadata["labels"].items()
    session = json.loads(metadata["annotations"][labels.SESSION])
    assert (session["action_id"], session["attempt"], session["nonce"]) == ("build/1", 2, PLAN.nonce)
    assert session["secrets"] == ["TOKEN"]
    assert metadata["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert metadata["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    assert metadata["ownerReferences"] == [{"kind": "ConfigMap", "name": "anchor"}]
    assert "ownerReferences" not in manifest.pod(PLAN, SETTINGS)["metadata"]


def order_of(pod: Object) -> Object:
    """Return the order that container `helper` reads from its environment."""
    found = environment(containers(pod)["helper"])
    text = "".join(expand(found[f"SEALCI_ORDER_{number}"]) for number in range(sum("ORDER" in name for name in found)))
    order: Object = json.loads(text)
    return order


def test_commands_and_values_reach_the_helper_unchanged() -> None:
    pod = manifest.pod(PLAN, SETTINGS)
    order = order_of(pod)
    assert order["commands"] == ["echo $HOME", "true"]
    assert order["env"]["A"] == "$(B) $$ $"
    assert (order["env"]["CI"], order["env"]["SEALCI_WORKSPACE"], order["env"]["SEALCI_ATTEMPT"]) == (
        ("true", "/workspace", "2")
    )
    assert order["secrets"] == ["TOKEN"]
    found = environment(containers(pod)["helper"])
    assert found["SEALCI_SECRET_TOKEN"] == {"secretKeyRef": {"name": PLAN.secret_name, "key": "TOKEN"}}
    assert containers(pod)["action"]["env"] == []
    assert "$(" not in json.dumps(pod["spec"]).replace("$$", "")


def test_the_command_of_container_action_is_the_same_for_all_actions() -> None:
    other = replace(ACTION, commands=("other",) * 9, env={"B": "c"}, secrets={})
    commands = [containers(manifest.pod(replace(PLAN, action=each), SETTINGS))["action"] for each in (ACTION, other)]
    assert commands[0]["command"] == commands[1]["command"]
    assert PLAN.nonce not in json.dumps(commands)


def test_a_secret_replaces_a_variable_and_the_user_replaces_the_agent_s() -> None:
    action = replace(ACTION, env={"TOKEN": "plain", "CI": "no"})
    order = order_of(manifest.pod(replace(PLAN, action=action), SETTINGS))
    assert order["secrets"] == ["TOKEN"]
    assert "TOKEN" not in order["env"]
    assert order["env"]["CI"] == "no"


def test_a_variable_of_the_installer_s_template_replaces_all() -> None:
    variables = [{"name": "CI", "value": "mine"}, {"name": "TOKEN", "value": "none"}]
    template = {"spec": {"containers": [{"name": "action", "env": variables}]}}
    pod = manifest.pod(PLAN, Settings.model_validate({"environment": {"pod_template": template}}))
    order = order_of(pod)
    assert order["secrets"] == []
    assert {"CI", "TOKEN"}.isdisjoint(order["env"])
    assert containers(pod)["action"]["env"] == variables


def test_variables_that_no_shell_can_export_belong_to_the_container() -> None:
    action = replace(ACTION, env={"UID": "$x", "A": "b"}, secrets={"BASHOPTS": "extglob"})
    pod = manifest.pod(replace(PLAN, action=action), SETTINGS)
    order = order_of(pod)
    assert order["secrets"] == []
    assert "UID" not in order["env"]
    assert environment(containers(pod)["action"]) == {
        "UID": "$$x",
        "BASHOPTS": {"secretKeyRef": {"name": PLAN.secret_name, "key": "BASHOPTS"}},
    }


def test_shellopts_is_no_variable_of_any_shell_at_its_start() -> None:
    """If SHELLOPTS were a variable of container `action`, bash would apply its options to the supervisor script."""
    options = {"SHELLOPTS": "xtrace"}
    for action in (replace(ACTION, env=options), replace(ACTION, secrets=options)):
        pod = manifest.pod(replace(PLAN, action=action), SETTINGS)
        assert containers(pod)["action"]["env"] == []
        assert "SHELLOPTS" not in order_of(pod)["env"]
    assert (
        order_of(manifest.pod(replace(PLAN, action=replace(ACTION, env=options)), SETTINGS))["shell_options"]
        == "xtrace"
    )
    assert order_of(pod)["secrets"] == ["SHELLOPTS"]


def test_the_snapshot_is_taken_only_if_it_is_compared() -> None:
    declared = replace(PLAN, action=replace(ACTION, artifacts=ArtifactRules(("a",))))
    found = [order_of(manifest.pod(plan, SETTINGS))["snapshot"] for plan in (PLAN, declared, WITHOUT_FILES)]
    assert found == [True, False, False]


@pytest.mark.parametrize(
    ("setting", "asked", "mode"),
    [
        (False, None, ""),
        (True, None, "wanted"),
        (False, True, "required"),
        (True, True, "required"),
        (True, False, ""),
    ],
)
def test_pipefail_is_as_the_action_asks_or_as_the_setting_has_it(setting: bool, asked: bool | None, mode: str) -> None:
    settings = Settings.model_validate({"environment": {"pipefail": setting}})
    plan = replace(PLAN, action=replace(ACTION, pipefail=asked))
    assert order_of(manifest.pod(plan, settings))["pipefail"] == mode


def test_the_clone_gets_an_order_and_its_credentials_as_files() -> None:
    pod = manifest.pod(CLONING, SETTINGS)
    clone = pod["spec"]["initContainers"][0]
    assert json.loads(expand(clone["command"][-1])) == {
        "url": "https://example.org/r",
        "ref": "main",
        "depth": 1,
        "submodules": False,
        "lfs": False,
        "umask": 0o022,
        "schemes": ["https", "ssh"],
        "workspace": "/workspace",
        "credentials": "/etc/sealci/credentials",
        "secret": "deploy",
        "timeout": 600.0,
        "git_config": "",
        "git_ca": "",
    }
    assert {"name": "credentials", "mountPath": "/etc/sealci/credentials"} in clone["volumeMounts"]
    action = containers(pod)["action"]
    assert "credentials" not in {mount["name"] for mount in action["volumeMounts"]}
    assert order_of(pod)["env"]["GIT_CONFIG_VALUE_0"] == "/workspace"
    assert "initContainers" not in manifest.pod(PLAN, SETTINGS)["spec"]


GIT = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "me"}


@pytest.mark.parametrize(
    ("env", "secrets", "expected"),
    [
        ({}, {}, {"COUNT": "1", "KEY_0": "safe.directory", "VALUE_0": "/workspace"}),
        ({"GIT_CONFIG_COUNT": ""}, {}, {"COUNT": "1", "KEY_0": "safe.directory", "VALUE_0": "/workspace"}),
        (
            GIT,
            {},
            {"COUNT": "2", "KEY_0": "user.name", "VALUE_0": "me", "KEY_1": "safe.directory", "VALUE_1": "/workspace"},
        ),
        # git itself reports that the value of GIT_CONFIG_COUNT is no number.
        ({"GIT_CONFIG_COUNT": "two"}, {}, {"COUNT": "two"}),
        # Without GIT_CONFIG_COUNT, the user's commands may set it themselves. So the agent adds no setting.
        ({"GIT_CONFIG_KEY_0": "user.name"}, {}, {"KEY_0": "user.name"}),
        ({}, {"GIT_CONFIG_COUNT": "1"}, {}),
    ],
)
def test_git_trusts_the_clone_and_keeps_the_settings_of_the_user(
    env: dict[str, str], secrets: dict[str, str], expected: dict[str, str]
) -> None:
    plan = replace(CLONING, action=replace(CLONING.action, env=env, secrets=secrets))
    found = action_order.variables(plan, SETTINGS)
    prefix = "GIT_CONFIG_"
    assert {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)} == expected


def test_the_deadline_is_longer_than_all_waits_of_the_agent() -> None:
    def deadline(plan: Plan) -> int:
        return int(manifest.pod(plan, SETTINGS)["spec"]["activeDeadlineSeconds"])

    assert deadline(WITHOUT_FILES) == 600 + 60 + 10 + 300
    assert deadline(PLAN) == deadline(WITHOUT_FILES) + 2 * 600
    assert deadline(CLONING) == deadline(PLAN) + 600
    assert deadline(replace(PLAN, timeout=60.5)) == deadline(PLAN) + 1
    assert deadline(WITH_INPUTS) == deadline(PLAN) + 2 * 600
    # Files go through the scheduler if the object store does not work, after it was tried.
    store = {"issuer": "agent", "endpoint": "https://store.example", "bucket": "b"}
    stored = Settings.model_validate({"objects": store})
    assert manifest.pod(PLAN, stored)["spec"]["activeDeadlineSeconds"] == deadline(PLAN) + 2 * 600


def test_an_errand_starts_the_commands_of_an_action_with_inputs() -> None:
    order, plain = (order_of(manifest.pod(plan, SETTINGS)) for plan in (WITH_INPUTS, PLAN))
    assert (order["start"], order["change_owner"], order["snapshot"]) == (False, True, True)
    assert (plain["start"], plain["change_owner"], plain["snapshot"]) == (True, False, True)
    assert order["seconds"] == plain["seconds"] + 2 * 600


def test_the_profiles() -> None:
    baseline, restricted = manifest.pod(CLONING, SETTINGS), manifest.pod(CLONING, RESTRICTED)
    assert "capabilities" not in containers(baseline)["action"]["securityContext"]
    assert "runAsUser" not in containers(baseline)["action"]["securityContext"]
    for own in ("helper", "repository"):
        security = containers(baseline)[own]["securityContext"]
        assert security["runAsUser"] == 0
        assert security["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"]}
    security = restricted["spec"]["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (
        (True, 65532, 65532, 65532)
    )
    for each in containers(restricted).values():
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "seccompProfile": {"type": "RuntimeDefault"},
            "capabilities": {"drop": ["ALL"]},
        }
    home = order_of(restricted)["env"]["HOME"]
    assert home in {mount["mountPath"] for mount in containers(restricted)["action"]["volumeMounts"]}


def test_a_user_namespace_only_if_the_plan_has_one() -> None:
    assert manifest.pod(replace(PLAN, user_namespace=True), SETTINGS)["spec"]["hostUsers"] is False
    assert "hostUsers" not in manifest.pod(PLAN, SETTINGS)["spec"]


@pytest.mark.parametrize(
    ("asked", "policy", "expected"),
    [
        (Resources(), {}, {"requests": {"cpu": "100m", "memory": "256Mi"} | NO_DISK, "limits": DISK}),
        (
            Resources("2", "1Gi"),
            {},
            {"requests": {"cpu": "2", "memory": "1Gi"} | NO_DISK, "limits": {"memory": "1Gi"} | DISK},
        ),
        (
            Resources("2", "1Gi"),
            {"limit_memory": False},
            {"requests": {"cpu": "2", "memory": "1Gi"} | NO_DISK, "limits": DISK},
        ),
        (
            Resources(ephemeral_storage="5Gi"),
            {},
            {
                "requests": {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "5Gi"},
                "limits": {"ephemeral-storage": "5Gi"},
            },
        ),
    ],
)
def test_resources(asked: Resources, policy: Object, expected: Object) -> None:
    settings = Settings.model_validate({"policy": policy})
    plan = replace(PLAN, action=replace(ACTION, resources=asked))
    assert containers(manifest.pod(plan, settings))["action"]["resources"] == expected


def test_the_installers_template_is_merged_over_the_pod() -> None:
    template = {
        "metadata": {"annotations": {"a": "b"}},
        "spec": {
            "nodeSelector": {"ci": "true"},
            "imagePullSecrets": [{"name": "registry"}],
            "tolerations": [{"key": "ci", "operator": "Exists"}],
            "volumes": [{"name": "cache", "emptyDir": {}}],
            "containers": [{"name": "action", "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]}],
        },
    }
    pod = manifest.pod(PLAN, Settings.model_validate({"environment": {"pod_template": template}}))
    assert pod["metadata"]["annotations"].keys() >= {"a", labels.SESSION}
    assert pod["spec"]["nodeSelector"] == {"ci": "true"}
    assert list(containers(pod)) == ["helper", "action"]
    mounts = [mount["mountPath"] for mount in containers(pod)["action"]["volumeMounts"]]
    assert mounts == ["/workspace", "/.sealci", "/cache"]


def test_a_template_puts_the_workspace_on_a_claim() -> None:
    claim = {"volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "100Gi"}}}}}
    template = {"spec": {"volumes": [{"name": "workspace", "emptyDir": None, "ephemeral": claim}]}}
    pod = manifest.pod(PLAN, Settings.model_validate({"environment": {"pod_template": template}}))
    assert pod["spec"]["volumes"][0] == {"name": "workspace", "ephemeral": claim}


def test_only_the_commands_of_a_class_that_builds_images_have_no_seccomp_profile() -> None:
    values = yaml.safe_load((CHART / "ci" / "classes-values.yaml").read_text("utf-8"))
    settings = Settings.model_validate({"environment": values["environment"]})
    plan = replace(CLONING, action=replace(CLONING.action, environment_class="image-build"))
    pod = manifest.pod(plan, settings_of_class(settings, "image-build"))
    found = {name: each["securityContext"].get("seccompProfile") for name, each in containers(pod).items()}
    default = {"type": "RuntimeDefault"}
    assert found == {"repository": default, "helper": default, "action": None}
    assert pod["spec"]["hostUsers"] is False
    assert not pod["spec"]["securityContext"]
    assert {mount["mountPath"] for mount in containers(pod)["action"]["volumeMounts"]} >= {"/var/lib/containers"}


def test_pull_secrets_belong_to_the_pod_and_a_template_adds_more() -> None:
    template = {"spec": {"imagePullSecrets": [{"name": "second"}]}}
    settings = {"environment": {"image_pull_secrets": ["first"], "pod_template": template}}
    pod = manifest.pod(PLAN, Settings.model_validate(settings))
    assert pod["spec"]["imagePullSecrets"] == [{"name": "first"}, {"name": "second"}]
    assert "imagePullSecrets" not in manifest.pod(PLAN, SETTINGS)["spec"]


def test_clones_and_commands_use_the_proxy_and_an_action_may_set_another() -> None:
    proxy = {"https": "http://proxy.example.org:3128", "no_proxy": ".svc"}
    settings = Settings.model_validate({"environment": {"proxy": proxy}})
    action = replace(CLONING.action, env={"https_proxy": "http://mine:1"})
    pod = manifest.pod(replace(CLONING, action=action), settings)
    expected = {"HTTPS_PROXY": proxy["https"], "https_proxy": proxy["https"], "NO_PROXY": ".svc", "no_proxy": ".svc"}
    assert environment(containers(pod)["repository"]).items() >= expected.items()
    assert order_of(pod)["env"].items() >= (expected | {"https_proxy": "http://mine:1"}).items()
    assert "http_proxy" not in order_of(pod)["env"]


def test_the_clone_gets_the_installer_s_git_settings_and_certificates() -> None:
    texts = {"git_config": "[http]\n", "git_ca": "-----BEGIN CERTIFICATE-----\n"}
    pod = manifest.pod(CLONING, Settings.model_validate({"environment": texts}))
    order = json.loads(expand(containers(pod)["repository"]["command"][-1]))
    assert {name: order[name] for name in texts} == texts


def test_the_pod_is_the_only_owner_of_the_secret() -> None:
    secret = action_order.secret(PLAN, SETTINGS, "uid-1")
    assert secret["metadata"]["name"] == PLAN.secret_name
    assert [owner["uid"] for owner in secret["metadata"]["ownerReferences"]] == ["uid-1"]
    assert secret["stringData"] == {"TOKEN": "hunter2-hunter2"}
    assert secret["immutable"] is True


@pytest.mark.parametrize("action_id", ["a", "Build/1", "ü" * 100, "x" * 256, "--", "a\nb", "A.b_c-" * 9])
def test_names_are_legal_and_unique(action_id: str) -> None:
    name = labels.pod_name("pool", action_id, 1)
    assert len(name) <= 63
    assert all(part.isascii() and (part.isalnum() and part == part.lower()) for part in name.split("-"))
    others = [
        labels.pod_name("pool", action_id, 2),
        labels.pod_name("other", action_id, 1),
        labels.pod_name("pool", action_id + "x", 1),
    ]
    assert len({name, *others}) == 4
    assert name == labels.pod_name("pool", action_id, 1)


@pytest.mark.parametrize(
    ("policy", "asked", "limits"),
    [
        # Attack: an action asks for no resources, in the hope that no maximum applies.
        ({"max_memory": "512Mi"}, Resources(), {"memory": "256Mi", "ephemeral-storage": "10Gi"}),
        ({"max_memory": "512Mi"}, Resources(memory="300Mi"), {"memory": "300Mi", "ephemeral-storage": "10Gi"}),
        ({"max_memory": "512Mi", "limit_memory": False}, Resources(), {"ephemeral-storage": "10Gi"}),
        ({"max_ephemeral_storage": "50Mi"}, Resources(), {"ephemeral-storage": "50Mi"}),
        ({"default_ephemeral_storage": "5Mi"}, Resources(), {"ephemeral-storage": "5Mi"}),
        ({}, Resources(ephemeral_storage="9Mi"), {"ephemeral-storage": "9Mi"}),
        ({"max_cpu": "2"}, Resources(), {"ephemeral-storage": "10Gi"}),
        ({"max_cpu": "2", "limit_cpu": True}, Resources(), {"cpu": "100m", "ephemeral-storage": "10Gi"}),
        ({"limit_cpu": True}, Resources(cpu="3"), {"cpu": "3", "ephemeral-storage": "10Gi"}),
        ({}, Resources(), {"ephemeral-storage": "10Gi"}),
    ],
)
def test_a_maximum_of_the_policy_also_limits_what_an_action_does_not_name(
    policy: dict[str, Any], asked: Resources, limits: dict[str, str]
) -> None:
    plan = replace(PLAN, action=replace(ACTION, resources=asked))
    action = containers(manifest.pod(plan, Settings.model_validate({"policy": policy})))["action"]
    assert action["resources"]["limits"] == limits


@pytest.mark.parametrize(
    ("policy", "request_"),
    [({}, "0"), ({"max_ephemeral_storage": "50Mi"}, "0"), ({"default_ephemeral_storage": "5Mi"}, "5Mi")],
)
def test_a_derived_disk_limit_reserves_nothing_on_the_node(policy: dict[str, Any], request_: str) -> None:
    action = containers(manifest.pod(PLAN, Settings.model_validate({"policy": policy})))["action"]
    assert action["resources"]["requests"]["ephemeral-storage"] == request_


def test_requests_and_limits_of_the_agent_s_own_containers_are_settings() -> None:
    asked = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi", "ephemeral-storage": "9Gi"}}
    given = {"helper_resources": asked, "clone_resources": {"requests": {"cpu": ""}, "limits": {"memory": "2Gi"}}}
    changed = containers(manifest.pod(CLONING, Settings.model_validate({"environment": given})))
    assert changed["helper"]["resources"] == asked
    assert changed["repository"]["resources"] == {"requests": {"memory": "32Mi"}, "limits": {"memory": "2Gi"}}
    default = containers(manifest.pod(CLONING, SETTINGS))
    assert default["helper"]["resources"] == {
        "requests": {"cpu": "10m", "memory": "32Mi", "ephemeral-storage": "0"},
        # 256 MiB for a log file of the largest size, and 128 MiB for the copies of the log that the node keeps.
        "limits": {"memory": "512Mi", "ephemeral-storage": str((256 + 128) << 20)},
    }
    assert default["repository"]["resources"]["limits"] == {"memory": "1Gi"}


def test_the_name_of_a_secret_is_not_computable_from_ids() -> None:
    """Attack: an action reads the ids of another action on the status page, and derives the name of its Secret."""
    names = {replace(PLAN, nonce=nonce).secret_name for nonce in ("a", "b", "c")}
    assert len(names) == 3
    assert PLAN.secret_name == replace(PLAN, agent_id="another").secret_name
    assert PLAN.nonce not in PLAN.secret_name
    pod_name = labels.pod_name("default", "Build/1" * 9, 1)
    for name in (pod_name, labels.secret_name(pod_name, "nonce"), labels.pod_name("default", "--", 1)):
        with pytest.raises(ValueError, match="belongs to an action"):
            checked_secret_name(name)


def test_a_pod_of_version_0_1_keeps_the_name_of_its_secret() -> None:
    pod = manifest.pod(PLAN, SETTINGS)
    assert secret_of_older_agent(pod) == ""
    containers(pod)["action"]["env"] = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": PLAN.name, "key": "A"}}}]
    old = json.loads(json.dumps(pod))
    assert secret_of_older_agent(old) == PLAN.name
    plan = replace(PLAN, existing_secret=PLAN.name)
    assert action_order.secret(plan, SETTINGS, "uid")["metadata"]["name"] == PLAN.name
    assert secret_of_older_agent({"metadata": {"name": "x"}}) == ""


def test_the_template_of_a_class_is_merged_after_that_of_all_pods() -> None:
    gpu = {
        "spec": {
            "nodeSelector": {"gpu": "yes"},
            "containers": [
                {"name": "action", "resources": {"limits": {"g": "1"}}, "env": [{"name": "GREETING", "value": "gpu"}]}
            ],
        }
    }
    environment = {
        "pod_template": {"spec": {"nodeSelector": {"disk": "ssd", "gpu": "no"}}},
        "classes": {"gpu": {"pod_template": gpu, "profile": "restricted"}},
    }
    settings = Settings.model_validate({"environment": environment})
    action = replace(ACTION, environment_class="gpu", env={"GREETING": "the user's"})
    plan = replace(PLAN, action=action)
    pod = manifest.pod(plan, settings_of_class(settings, "gpu"))
    assert "GREETING" not in order_of(pod)["env"]
    assert pod["spec"]["nodeSelector"] == {"disk": "ssd", "gpu": "yes"}
    assert containers(pod)["action"]["resources"]["limits"]["g"] == "1"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["metadata"]["labels"]["sealci.dev/class"] == "gpu"
    without = manifest.pod(PLAN, settings)
    assert without["spec"]["nodeSelector"] == {"disk": "ssd", "gpu": "no"}
    assert "sealci.dev/class" not in without["metadata"]["labels"]


def test_a_re_created_pod_keeps_only_a_node_that_a_template_names() -> None:
    pinned = {"pod_template": {"spec": {"nodeName": "gpu-1"}}}
    settings = Settings.model_validate({"environment": {"classes": {"pinned": pinned, "free": {}}}})
    for name, kept in (("pinned", True), ("free", False), ("", False)):
        plan = replace(PLAN, action=replace(ACTION, environment_class=name))
        pod = manifest.pod(plan, settings) | {"status": {}}
        pod["spec"]["nodeName"] = "gpu-1"
        found = recreation_manifest(pod, settings)
        assert found is not None
        assert ("nodeName" in found["spec"]) is kept

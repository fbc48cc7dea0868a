"""The containers of services in the manifest of a pod: order, names, probe, profile, volumes, secrets, deadlines."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.cluster.pod import action_order, manifest, session_annotation
from agent.cluster.pod.manifest import Plan
from agent.cluster.pod.services.containers import largest_request
from agent.domain.actions import Action, HealthCommand, Key, OnExit, Resources, Service, ServiceLog
from agent.domain.json import Object
from agent.settings import Settings

SETTINGS = Settings()
RESTRICTED = Settings.model_validate({"environment": {"profile": "restricted"}})
DB = Service(
    "db",
    "postgres:18",
    aliases=("database",),
    command=("sh", "-c", "exec $(X) $PGDATA"),
    args=("-c", "$$"),
    env={"PGDATA": "/data/$(A)"},
    secrets=("TOKEN",),
    ports=(5432, 5433),
    health=HealthCommand(("pg_isready", "$(X)"), 30.0),
    resources=Resources("500m", "1Gi", "2Gi"),
    scratch=("/data", "/run/db"),
    on_exit=OnExit.ANY_FAILS,
    log=ServiceLog.LIVE,
)
CACHE = Service("cache", "redis:8", ports=(6379,))
ACTION = Action(Key("build"), "alpine:3", ("true",), secrets={"TOKEN": "hunter2", "OTHER": "hunter3"})
PLAIN = Plan(ACTION, "sealci-build-1", "ci", "agent-1", "0123456789abcdef", timeout=60.0)
PLAN = replace(PLAIN, action=replace(ACTION, services=(DB, CACHE)))


def containers(plan: Plan = PLAN, settings: Settings = SETTINGS) -> dict[str, Object]:
    return {each["name"]: each for each in manifest.pod(plan, settings)["spec"]["containers"]}


def gate(plan: Plan, settings: Settings = SETTINGS) -> Object:
    variables = {each["name"]: each.get("value", "") for each in containers(plan, settings)["helper"]["env"]}
    found: Object = json.loads(variables["SEALCI_ORDER_0"].replace("$$", "$"))["gate"]
    return found


def test_services_stand_between_helper_and_action() -> None:
    assert list(containers()) == ["helper", "service-db", "service-cache", "action"]


def test_all_containers_of_the_pod_find_the_services_by_their_names() -> None:
    spec = manifest.pod(PLAN, SETTINGS)["spec"]
    assert spec["hostAliases"] == [{"ip": "127.0.0.1", "hostnames": ["db", "database", "cache"]}]
    assert "hostAliases" not in manifest.pod(PLAIN, SETTINGS)["spec"]


def test_the_kubelet_expands_nothing_in_a_service() -> None:
    db = containers()["service-db"]
    assert db["command"] == ["sh", "-c", "exec $$(X) $$PGDATA"]
    assert db["args"] == ["-c", "$$$$"]
    assert db["env"][0] == {"name": "PGDATA", "value": "/data/$$(A)"}
    assert db["startupProbe"]["exec"]["command"] == ["pg_isready", "$$(X)"]
    assert "command" not in containers()["service-cache"]


def test_a_health_command_is_a_startup_probe_that_outlasts_the_agents_own_limit() -> None:
    probe = containers()["service-db"]["startupProbe"]
    assert probe["periodSeconds"] == 1
    assert probe["failureThreshold"] > 30
    assert "startupProbe" not in containers()["service-cache"]


def test_a_service_gets_only_the_secrets_that_it_names() -> None:
    names = {name: [each["name"] for each in found["env"]] for name, found in containers().items()}
    assert names["service-db"] == ["PGDATA", "TOKEN"]
    assert names["service-cache"] == []
    reference = containers()["service-db"]["env"][1]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": PLAN.secret_name, "key": "TOKEN"}
    assert "hunter" not in json.dumps(manifest.pod(PLAN, SETTINGS))


@pytest.mark.parametrize("settings", [SETTINGS, RESTRICTED], ids=["baseline", "restricted"])
def test_a_service_has_the_profile_of_the_action_and_no_volume_but_scratch(settings: Settings) -> None:
    found = containers(PLAN, settings)
    assert found["service-db"]["securityContext"] == found["action"]["securityContext"]
    mounts = {each["name"]: each["mountPath"] for each in found["service-db"]["volumeMounts"]}
    assert mounts == {"scratch-db-0": "/data", "scratch-db-1": "/run/db"}
    volumes = {each["name"]: each for each in manifest.pod(PLAN, settings)["spec"]["volumes"]}
    assert volumes["scratch-db-1"] == {"name": "scratch-db-1", "emptyDir": {"sizeLimit": "10Gi"}}
    assert found["service-cache"]["volumeMounts"] == []


def test_a_privileged_service_has_no_other_field_that_excludes_it() -> None:
    plan = replace(PLAN, action=replace(ACTION, services=(replace(CACHE, privileged=True),)))
    assert containers(plan)["service-cache"]["securityContext"] == {"privileged": True}


def test_resources_of_a_service() -> None:
    assert containers()["service-db"]["resources"] == {
        "requests": {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "2Gi"},
        "limits": {"memory": "1Gi", "ephemeral-storage": "2Gi"},
    }
    assert containers()["service-cache"]["resources"] == {
        "requests": {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "0"},
        "limits": {"memory": "256Mi", "ephemeral-storage": "10Gi"},
    }
    assert largest_request(PLAN, SETTINGS) == (
        "2 services add cpu 600m and memory 1280Mi to the request of the pod; the largest is db with cpu 500m and "
        "memory 1Gi"
    )


def test_the_deadlines_inside_the_pod_allow_for_the_wait() -> None:
    more = Settings.model_validate({"services": {"timeout": "100s"}})
    seconds = action_order.deadline(PLAN, more) - action_order.deadline(PLAIN, more)
    assert seconds == 100


def test_the_helper_waits_for_the_ports_and_for_the_agent_only_where_it_must() -> None:
    assert gate(PLAN) == {
        "ports": [[1, 5432], [1, 5433], [2, 6379]],
        "names": ["db", "cache"],
        "seconds": 120.0,
        "release": True,
        "tree": False,
    }
    assert gate(PLAIN) is None
    ports_alone = replace(PLAN, action=replace(ACTION, services=(CACHE,)), upload_tree=True)
    assert (gate(ports_alone)["release"], gate(ports_alone)["tree"]) == (False, True)
    neither = replace(PLAN, action=replace(ACTION, services=(replace(CACHE, ports=()),)))
    assert (gate(neither)["ports"], gate(neither)["release"]) == ([], True)


def test_an_adopting_agent_reads_what_it_needs_of_services() -> None:
    pod = manifest.pod(PLAN, SETTINGS)
    action, _ = session_annotation.read(pod)
    db, cache = action.services
    assert (db.name, db.ports, db.on_exit, db.log) == ("db", (5432, 5433), OnExit.ANY_FAILS, ServiceLog.LIVE)
    assert db.health == HealthCommand((), 30.0)
    assert cache == Service("cache", "", ports=(6379,))
    assert len(action.commands) == 1


def test_an_agent_of_an_older_release_leaves_a_pod_with_services_alone() -> None:
    # This is how the agent of commit 3ff2651 reads the number of commands. Its error makes it leave the pod alone.
    session = json.loads(manifest.pod(PLAN, SETTINGS)["metadata"]["annotations"]["sealci.dev/session"])
    with pytest.raises(KeyError):
        int(session["command_count"] if "command_count" in session else session["commands"])
    session = json.loads(manifest.pod(PLAIN, SETTINGS)["metadata"]["annotations"]["sealci.dev/session"])
    assert session["command_count"] == 1

"""Admission of services: each limit, with the field and what is allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.domain.actions import Action, HealthCommand, Key, Repository, Resources, Service
from agent.domain.errors import ActionFailed, Reason
from agent.domain.session_state import Feature
from agent.execution.admission import admission_of, admit, agent_features
from agent.execution.services.admission import MAX_SERVICE_BYTES, ServiceRules
from agent.settings import PolicySettings, ServiceSettings, Settings

DB = Service("db", "postgres:18", ports=(5432,))
POLICY = PolicySettings()
RULES = ServiceRules(ServiceSettings(max=2))
DIGEST = "@sha256:" + "0" * 64


def problems(
    *services: Service, policy: PolicySettings = POLICY, rules: ServiceRules = RULES, **fields: Any
) -> list[str]:
    action = Action(Key("build"), "alpine:3", ("true",), services=services, **fields)
    try:
        admit(action, policy, rules=rules)
    except ActionFailed as failure:
        return [f"{failure.stage}"] if failure.reason is not Reason.INVALID_CONFIGURATION else failure.log.splitlines()
    return []


def changed(**fields: Any) -> Service:
    return replace(DB, **fields)


@pytest.mark.parametrize(
    "service",
    [
        DB,
        changed(name="a" * 50),
        changed(aliases=("queue", "q-1"), ports=(1, 65535)),
        changed(health=HealthCommand(("pg_isready",), 120.0), ports=()),
        changed(scratch=("/data", "/var/lib/x"), env={"A": "b"}, secrets=("TOKEN",)),
        changed(resources=Resources("2", "4Gi")),
    ],
)
def test_these_services_are_allowed(service: Service) -> None:
    assert problems(service, secrets={"TOKEN": "hunter2"}) == []


@pytest.mark.parametrize(
    ("service", "text"),
    [
        (changed(name="Db"), "services.Db: 'Db' is not a name; allowed: 1 to 50 of a-z, 0-9 and -, no - at the ends"),
        (changed(name="a" * 51), "is not a name"),
        (changed(name=""), "services.1: '' is not a name"),
        (changed(name="localhost"), "the host name 'localhost' is reserved"),
        (changed(aliases=("sealci-build-1",)), "the host name 'sealci-build-1' is reserved"),
        (changed(aliases=("127.0.0.1",)), "the host name '127.0.0.1' is reserved"),
        (changed(aliases=("ip6-localhost",)), "is reserved"),
        (changed(aliases=("git.example.com",)), "has a dot and is not allowed; policy.service_aliases: none"),
        (changed(aliases=("a_b",)), "services.db.aliases: 'a_b' is not a host name"),
        (changed(aliases=tuple(f"a{n}" for n in range(21))), "services.db.aliases: 21 are too many; at most 20"),
        (changed(aliases=("db",)), "the host name 'db' is given twice, for 'db' and 'db'"),
        (changed(image=""), "services.db.image: is missing"),
        (changed(image="a b"), "services.db.image: 'a b' is not an image reference"),
        (changed(ports=(0,)), "services.db.ports: 0 is not a port; allowed: 1 to 65535"),
        (changed(ports=tuple(range(1, 22))), "services.db.ports: 21 are too many; at most 20"),
        (changed(health=HealthCommand(())), "services.db.health.command: is missing"),
        (
            changed(health=HealthCommand(("x",), 121.0)),
            "services.db.health.timeout: 121 s is over the maximum of 120 s (setting services.timeout)",
        ),
        (changed(resources=Resources(memory="5Gi")), "services.db.resources.memory: 5Gi is over the maximum of 4Gi"),
        (changed(resources=Resources(cpu="3")), "services.db.resources.cpu: 3 is over the maximum of 2"),
        (changed(env={"1": ""}), "services.db.env: '1' is not a variable name"),
        (changed(secrets=("NOPE",)), "services.db.secrets: 'NOPE' is not a secret of the action"),
        (changed(secrets=("TOKEN",), env={"TOKEN": "x"}), "services.db.secrets: 'TOKEN' is also set in env"),
        (changed(args=("x" * MAX_SERVICE_BYTES, "y")), "its commands and variables have 16385 characters; at most"),
        (changed(command=("a\0",)), "services.db: a NUL byte cannot be part of a command"),
        (changed(scratch=("data",)), "services.db.scratch: 'data' is not an absolute path"),
        (changed(scratch=("/a/../b",)), "is not an absolute path"),
        (changed(scratch=("/proc/x",)), "services.db.scratch: '/proc/x' is a folder of the system"),
        (changed(scratch=("/a", "/a")), "services.db.scratch: '/a' is listed twice"),
        (
            changed(scratch=tuple(f"/{n}" for n in range(11))),
            "services.db.scratch: 11 folders are too many; at most 10",
        ),
        (
            changed(privileged=True),
            "services.db.privileged: policy.privileged_services does not name the image 'postgres:18'",
        ),
    ],
)
def test_a_problem_names_the_field_and_what_is_allowed(service: Service, text: str) -> None:
    (found,) = problems(service, secrets={"TOKEN": "hunter2"})
    assert text in found
    assert "hunter2" not in found


def test_an_alias_cannot_take_the_host_of_the_repository() -> None:
    clone = Repository("https://gitea/r")
    assert problems(changed(aliases=("gitea",)), repository=clone) == [
        "services.db: the host name 'gitea' is the host of the repository"
    ]


def test_services_share_names_ports_and_a_number() -> None:
    other = Service("cache", "redis:8", aliases=("db",), ports=(5432,))
    assert problems(DB, other) == [
        "services: the host name 'db' is given twice, for 'db' and 'cache'",
        "services: the port 5432 is declared twice, for 'db' and 'cache'",
    ]
    three = [changed(name=f"s{n}", ports=()) for n in range(3)]
    assert problems(*three) == ["services: 3 are too many; at most 2 (setting services.max)"]


def test_the_policy_for_images_of_services() -> None:
    both = PolicySettings.model_validate({"images": ["alpine:3"], "service_images": ["postgres:*"]})
    assert problems(DB, policy=both) == []
    same = PolicySettings.model_validate({"images": ["alpine:3"]})
    assert problems(DB, policy=same) == ["services.db.image: 'postgres:18' is not allowed; allowed: alpine:3"]
    digest = PolicySettings.model_validate({"require_digest": True})
    assert any("services.db.image: 'postgres:18' has no digest" in each for each in problems(DB, policy=digest))


def test_a_dotted_alias_needs_a_pattern_of_the_policy() -> None:
    policy = PolicySettings.model_validate({"service_aliases": ["*.test"]})
    assert problems(changed(aliases=("db.test",)), policy=policy) == []
    assert len(problems(changed(aliases=("db.test.example",)), policy=policy)) == 1


def test_a_privileged_service_needs_the_policy_and_another_profile_than_restricted() -> None:
    policy = PolicySettings.model_validate({"privileged_services": ["docker:*"]})
    docker = changed(image="docker:28-dind", privileged=True)
    assert problems(docker, policy=policy) == []
    restricted = replace(RULES, restricted=True)
    assert problems(docker, policy=policy, rules=restricted) == [
        "services.db.privileged: the profile restricted forbids it"
    ]


def test_services_need_a_network_of_the_pods_own() -> None:
    template = {"environment": {"pod_template": {"spec": {"hostNetwork": True}}}}
    rules = ServiceRules.of(Settings.model_validate(template))
    assert problems(DB, rules=rules) == ["services: not possible, because the agent's pod template sets hostNetwork"]


def test_a_class_has_its_own_profile_network_and_images_for_services() -> None:
    settings = Settings.model_validate(
        {
            "environment": {
                "pod_template": {"spec": {"hostNetwork": True}},
                "classes": {
                    "strict": {"profile": "restricted", "pod_template": {"spec": {"hostNetwork": False}}},
                    "same": {"images": ["alpine:*"]},
                },
            },
            "policy": {"privileged_services": ["*"]},
        }
    )
    admit = admission_of(settings)

    def problems_in(name: str) -> list[str]:
        service = changed(privileged=True)
        action = Action(Key("build"), "alpine:3", ("true",), services=(service,), environment_class=name)
        with pytest.raises(ActionFailed) as failure:
            admit(action)
        return failure.value.log.splitlines()

    network = "services: not possible, because the agent's pod template sets hostNetwork"
    assert problems_in("") == [network]
    assert problems_in("strict") == ["services.db.privileged: the profile restricted forbids it"]
    assert problems_in("same") == [network, "services.db.image: 'postgres:18' is not allowed; allowed: alpine:*"]


def test_an_agent_whose_settings_allow_no_service_does_not_offer_the_feature() -> None:
    assert [each.value for each in agent_features(Settings())] == ["inputs", "object-packs", "cache", "services"]
    assert Feature.SERVICES not in agent_features(Settings.model_validate({"services": {"max": 0}}))

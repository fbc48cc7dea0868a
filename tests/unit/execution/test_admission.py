"""Admission: values at and just over each limit, all problems in one report, and no secret in a report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.domain.actions import Action, ArtifactRules, Key, Repository, Resources
from agent.domain.errors import ActionFailed, Reason, Stage
from agent.execution.admission import MAX_COMMANDS_BYTES, MAX_VARIABLES_BYTES, admit
from agent.execution.admission_checks import MAX_VARIABLE_BYTES
from agent.settings import PolicySettings

ACTION = Action(Key("build"), "alpine:3", ("true",))
POLICY = PolicySettings.model_validate(
    {"max_timeout": 100, "default_timeout": 60, "max_commands": 5, "max_variables": 3}
    | {"credentials": {"deploy.key-1": ["example.org"]}}
)
SECRET = "hunter2-hunter2"


def repository(url: str = "https://example.org/r", **fields: Any) -> dict[str, Any]:
    return {"repository": Repository(url, **fields)}


def problems(policy: PolicySettings = POLICY, **fields: Any) -> list[str]:
    with pytest.raises(ActionFailed) as failed:
        admit(replace(ACTION, **fields), policy)
    error = failed.value
    assert (error.stage, error.reason) == (Stage.ADMISSION, Reason.INVALID_CONFIGURATION)
    assert error.message == error.log.replace("\n", "; ")
    return error.log.splitlines()


def test_a_plain_action_gets_the_default_timeout() -> None:
    assert admit(ACTION, POLICY) == 60
    assert admit(replace(ACTION, timeout=100.0), POLICY) == 100
    assert admit(ACTION, POLICY.model_copy(update={"default_timeout": 500.0})) == 100


@pytest.mark.parametrize(
    "fields",
    [
        {"commands": ("x" * MAX_COMMANDS_BYTES,)},
        {"commands": ("é" * (MAX_COMMANDS_BYTES // 2),)},
        {"commands": ("true",) * 5},
        {"env": {"_A1": "x", "b": ""}, "secrets": {"C": SECRET}},
        {"env": {"A": "x" * (MAX_VARIABLE_BYTES - 1)}},
        {"timeout": 0.001},
        {"key": Key("a" * 256)},
        repository(),
        repository("HTTPS://example.org/r@v1"),
        repository("ssh://git@example.org/r"),
        repository("git@example.org:group/r.git", ref="feature/x", credentials="deploy.key-1"),
        repository("https://example.org/r@v1", credentials="deploy.key-1"),
        {"resources": Resources("1", "1Gi", "100M")},
        {"resources": Resources("1m", "6Mi", "1Mi")},
        {"artifacts": ArtifactRules(("*" * 500,) * 100, ("*",) * 100)},
    ],
)
def test_allowed_actions_pass(fields: dict[str, Any]) -> None:
    admit(replace(ACTION, **fields), POLICY)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"key": Key("")}, "action_id: must have 1 to 256 bytes"),
        ({"key": Key("é" * 129)}, "action_id"),
        ({"image": ""}, "image: is missing"),
        ({"image": "al pine"}, "image: 'al pine' is not an image reference"),
        ({"image": "x" * 513}, "is not an image reference"),
        ({"commands": ()}, "commands: at least one is needed"),
        ({"commands": ("true",) * 6}, "commands: 6 are too many; at most 5"),
        (
            {"commands": ("x", "é" * (MAX_COMMANDS_BYTES // 2))},
            f"commands: {MAX_COMMANDS_BYTES + 1} bytes in all are too many; at most {MAX_COMMANDS_BYTES}",
        ),
        ({"commands": ("a\0b",)}, "commands[1]: a NUL byte"),
        ({"env": {"1A": "x"}}, "env: '1A' is not a variable name"),
        ({"env": {"A-B": "x"}}, "env: 'A-B'"),
        ({"env": {"": "x"}}, "env: ''"),
        ({"env": {"A\n": "x"}}, "env: 'A\\n'"),
        ({"env": {"A": "x\0y"}}, "env: the value of 'A' holds a NUL byte"),
        ({"secrets": {"A": SECRET + "\0"}}, "secrets: the value of 'A' holds a NUL byte"),
        ({"secrets": {"a b": SECRET}}, "secrets: 'a b' is not a variable name"),
        (
            {"env": {"A": "", "B": ""}, "secrets": {"C": SECRET, "D": SECRET}},
            "env and secrets: 4 are too many; at most 3",
        ),
        (
            {"env": {"A": "é" * (MAX_VARIABLE_BYTES // 2)}},
            f"env: 'A' has {MAX_VARIABLE_BYTES + 1} bytes with its value; at most {MAX_VARIABLE_BYTES}, because Linux",
        ),
        ({"secrets": {"A": "x" * MAX_VARIABLE_BYTES}}, f"secrets: 'A' has {MAX_VARIABLE_BYTES + 1} bytes"),
        ({"env": {"A": "x" * MAX_VARIABLES_BYTES}}, f"env and secrets: {MAX_VARIABLES_BYTES + 1} bytes are too many"),
        ({"timeout": 0.0}, "timeout: 0 s is not allowed"),
        ({"timeout": -1.0}, "timeout: -1 s"),
        (
            {"image": "registry.example/Team/x:1"},
            "image: 'registry.example/Team/x:1' is not an image reference: 'Team/x' must be in lower case",
        ),
        ({"timeout": 101.0}, "timeout: 101 s is not allowed; more than 0, at most 100 s"),
        ({"timeout": float("nan")}, "timeout: nan s"),
        ({"timeout": float("inf")}, "timeout: inf s"),
        ({"resources": Resources(cpu="lots")}, "resources.cpu: 'lots' is not a quantity"),
        ({"resources": Resources(memory="-1")}, "resources.memory: '-1' is not a quantity"),
        ({"resources": Resources(memory="0")}, "resources.memory: 0 is below the minimum of 6Mi"),
        ({"resources": Resources(memory="0.0Gi")}, "resources.memory: 0.0Gi is below the minimum of 6Mi"),
        ({"resources": Resources(memory="1n")}, "resources.memory: 1n is below the minimum of 6Mi"),
        ({"resources": Resources(memory="6143Ki")}, "resources.memory: 6143Ki is below the minimum of 6Mi"),
        ({"resources": Resources(cpu="0")}, "resources.cpu: 0 is below the minimum of 1m"),
        ({"resources": Resources(cpu="999999n")}, "resources.cpu: 999999n is below the minimum of 1m"),
        (
            {"resources": Resources(ephemeral_storage="0k")},
            "resources.ephemeral_storage: 0k is below the minimum of 1Mi",
        ),
        (repository("http://example.org/r"), "the scheme 'http' is not allowed; allowed: https, ssh"),
        (repository("file:///etc"), "the scheme 'file' is not allowed"),
        (repository("/etc"), "repository.url: must have the form https://HOST/PATH"),
        (repository("../r"), "repository.url: must have the form https://HOST/PATH"),
        (repository("hello"), "repository.url: must have the form https://HOST/PATH"),
        (repository("git://user:pw@example.org/r"), "must not hold credentials"),
        (repository("ssh://user:pw@example.org/r"), "must not hold credentials"),
        (repository("svn://user:pw@example.org/r"), "must not hold credentials"),
        (repository("ftp://user:pw@exa mple/r"), "must not hold credentials"),
        (repository("user:pw@example.org:r"), "must not hold credentials"),
        (repository("ext::sh -c date"), "repository.url: must "),
        (repository("https::file:///etc"), "repository.url: must "),
        (repository("--upload-pack=date"), "must not start with a dash"),
        (repository("-x@example.org:r"), "must not start with a dash"),
        (repository(ref="--upload-pack=date"), "must not start with a dash"),
        (repository("https://user:pw@example.org/r"), "must not hold credentials"),
        (repository("https://token@example.org/r"), "must not hold credentials"),
        (repository("HTTPS://user:pw@example.org/r"), "must not hold credentials"),
        (repository(credentials="../secret"), "is not the name of a Secret"),
        (repository(credentials="UPPER"), "is not the name of a Secret"),
    ],
)
def test_each_problem_is_refused_with_its_reason(fields: dict[str, Any], says: str) -> None:
    found = problems(**fields)
    assert [line for line in found if says in line], found
    assert SECRET not in "".join(found)
    assert "pw" not in "".join(found)


def test_all_problems_are_reported_at_once() -> None:
    found = problems(image="", commands=(), timeout=0.0, resources=Resources("x", "y", "z"))
    assert len(found) == 6


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("alpine:3", True),
        ("alpine", True),
        ("ghcr.io/acme/tool:1", True),
        ("ghcr.io/evil/tool", False),
        ("alpine:5000/evil", False),
        ("ghcr.io/acme/group/tool", False),
    ],
)
def test_the_allow_list_is_patterns_over_the_parts_of_a_reference(image: str, allowed: bool) -> None:
    policy = PolicySettings(images=("alpine:*", "ghcr.io/acme/*"))
    if allowed:
        admit(replace(ACTION, image=image), policy)
    else:
        assert f"image: {image!r} is not allowed; allowed: alpine:*, ghcr.io/acme/*" in problems(policy, image=image)


@pytest.mark.parametrize("unit", ["cpu", "memory", "ephemeral_storage"])
def test_resources_are_held_against_their_maxima(unit: str) -> None:
    policy = PolicySettings.model_validate({f"max_{unit}": "1Gi"})
    admit(replace(ACTION, resources=Resources(**{unit: "1024Mi"})), policy)
    over = problems(policy, resources=Resources(**{unit: "1025Mi"}))
    assert over == [f"resources.{unit}: 1025Mi is over the maximum of 1Gi"]


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        (f"alpine@sha256:{'0a' * 32}", True),
        (f"ghcr.io/acme/x:1@sha256:{'0a' * 32}", True),
        ("alpine:3", False),
        ("alpine", False),
        (f"@sha256:{'0a' * 32}", False),
        (f"alpine@sha256:{'0a' * 31}", False),
        (f"alpine@sha256:{'0A' * 32}", False),
        (f"alpine@sha256:{'0a' * 32}\n", False),
        (f"alpine@md5:{'0a' * 32}", False),
    ],
)
def test_a_digest_can_be_required(image: str, allowed: bool) -> None:
    policy = PolicySettings(require_digest=True)
    if allowed:
        admit(replace(ACTION, image=image), policy)
    else:
        assert any("digest" in each or "not an image" in each for each in problems(policy, image=image))


CREDENTIALS = PolicySettings.model_validate(
    {
        "repository_schemes": ["https", "ssh", "http"],
        "credentials": {"deploy": ["github.com/acme", "*.corp.example"], "any": ["*"]},
    }
)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/acme/x.git", "deploy"),
        ("git@github.com:acme/x.git", "deploy"),
        ("ssh://git@git.corp.example/x", "deploy"),
        ("https://elsewhere.example/x", "any"),
        ("https://elsewhere.example/x", ""),
    ],
)
def test_credentials_are_used_for_their_hosts(url: str, name: str) -> None:
    admit(replace(ACTION, **repository(url, credentials=name)), CREDENTIALS)


@pytest.mark.parametrize(
    ("url", "name", "problem"),
    [
        # Attack: an author of a pipeline names a Secret of another team, and a server that belongs to the author.
        ("http://attacker.example/x", "deploy", "the Secret 'deploy' may be used for github.com/acme, *.corp.example"),
        ("https://github.com.attacker.example/acme/x", "deploy", "the Secret 'deploy' may be used for github.com/acme"),
        ("https://github.com/attacker/x", "deploy", "the Secret 'deploy' may be used for github.com/acme"),
        ("https://github.com/acme/../attacker/x", "deploy", "the Secret 'deploy' may be used for github.com/acme"),
        ("https://github.com/acme/x", "team-b", "policy.credentials of the agent names no Secret 'team-b'"),
        ("https://github.com/acme/x", "deploy2", "policy.credentials of the agent names no Secret 'deploy2'"),
        # Attack: an author of a pipeline names the Secret of a running action.
        ("https://github.com/acme/x", "sealci-build-0123456789ab", "belongs to an action"),
        ("https://github.com/acme/x", "sealci-0123456789ab-0123456789abcdef", "belongs to an action"),
    ],
)
def test_credentials_are_refused_for_every_other_host(url: str, name: str, problem: str) -> None:
    found = problems(CREDENTIALS, **repository(url, credentials=name))
    assert len(found) == 1
    assert found[0].startswith("repository.credentials: ")
    assert problem in found[0]


def test_no_credentials_may_be_named_by_default() -> None:
    found = problems(PolicySettings(), **repository("https://github.com/acme/x", credentials="deploy"))
    assert found == ["repository.credentials: policy.credentials of the agent names no Secret 'deploy'"]


def test_the_hosts_of_repositories_can_be_limited() -> None:
    policy = PolicySettings(repository_hosts=("github.com/acme", "git.corp:8443"))
    admit(replace(ACTION, **repository("https://github.com/acme/x")), policy)
    admit(replace(ACTION, **repository("ssh://git@git.corp:8443/x")), policy)
    found = problems(policy, **repository("https://evil.example/x"))
    assert found == [
        "repository.url: the host evil.example is not allowed; policy.repository_hosts: github.com/acme, git.corp:8443"
    ]


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (ArtifactRules(("*",) * 101), "artifacts.paths: 101 globs are too many; at most 100"),
        (ArtifactRules((), ("*",) * 101), "artifacts.exclude: 101 globs are too many; at most 100"),
        (ArtifactRules(("*a" * 251,)), f"artifacts.paths: {'*a' * 25!r}... has 502 characters; at most 500"),
        (ArtifactRules(("a\0b",)), "artifacts.paths: 'a\\x00b' holds a NUL byte"),
    ],
)
def test_number_and_length_of_globs_are_bounded(rules: ArtifactRules, text: str) -> None:
    assert problems(artifacts=rules) == [text]


def test_a_class_that_the_agent_does_not_have_is_refused_with_the_list() -> None:
    action = replace(ACTION, environment_class="gpux")
    for classes, words in (
        ({"large": POLICY, "gpu": POLICY}, "there are: large, gpu"),
        ({}, "this agent has no classes"),
    ):
        with pytest.raises(ActionFailed) as failed:
            admit(action, POLICY, classes)
        assert failed.value.message == f"class: there is no class 'gpux'; {words}"
        assert failed.value.reason is Reason.INVALID_CONFIGURATION


def test_the_policy_of_the_class_holds() -> None:
    classes = {"gpu": POLICY.model_copy(update={"images": ("registry.example.org/ml/*",), "max_memory": "1Gi"})}
    admit(replace(ACTION, environment_class="gpu", image="registry.example.org/ml/torch:2"), POLICY, classes)
    with pytest.raises(ActionFailed) as failed:
        admit(replace(ACTION, environment_class="gpu", resources=Resources(memory="2Gi")), POLICY, classes)
    assert failed.value.log.splitlines() == [
        "image: 'alpine:3' is not allowed; allowed: registry.example.org/ml/*",
        "resources.memory: 2Gi is over the maximum of 1Gi",
    ]

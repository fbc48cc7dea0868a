"""Services in a pipeline file: every key, and each mistake with its line."""

from __future__ import annotations

import json
from textwrap import dedent

import pytest

from agent.domain.actions import HealthCommand, Key, OnExit, Resources, Service, ServiceLog
from agent.domain.errors import Reason
from agent.domain.session_state import Feature
from agent.pipeline import schema
from agent.pipeline.file_errors import PipelineFileError
from agent.pipeline.parser import parse

HEAD = "configuration: {container: i}\ncommands: [x]\nsecrets: [TOKEN]\n"
FULL = """
services:
  db:
    container: postgres:18
    ports: [5432]
    health: {command: [pg_isready, -q], timeout: 1m}
    env: {PGDATA: /data/db, NUMBER: 1.10}
    secrets: [TOKEN]
    aliases: [database, pg.test]
    command: [postgres]
    args: [-c, fsync=off]
    resources: {cpu: 500m, memory: 1Gi}
    scratch: [/data]
    privileged: true
    on_exit: any-fails
    log: live
  redis: {container: redis:8}
"""


def services(text: str) -> tuple[Service, ...]:
    (action,) = parse(HEAD + dedent(text), "ci.yaml").actions
    return action.services


def test_every_key_of_a_service_is_read() -> None:
    db, redis = services(FULL)
    assert db == Service(
        "db",
        "postgres:18",
        aliases=("database", "pg.test"),
        command=("postgres",),
        args=("-c", "fsync=off"),
        env={"PGDATA": "/data/db", "NUMBER": "1.10"},
        secrets=("TOKEN",),
        ports=(5432,),
        health=HealthCommand(("pg_isready", "-q"), 60.0),
        resources=Resources("500m", "1Gi"),
        scratch=("/data",),
        privileged=True,
        on_exit=OnExit.ANY_FAILS,
        log=ServiceLog.LIVE,
    )
    assert redis == Service("redis", "redis:8")


def test_an_action_with_services_needs_the_feature() -> None:
    (with_services,) = parse(HEAD + FULL, "ci.yaml").actions
    (without,) = parse(HEAD, "ci.yaml").actions
    assert with_services.features == frozenset({Feature.SERVICES})
    assert without.features == frozenset()
    assert with_services.action(Key("a"), {"TOKEN": "x"}).services == with_services.services


def test_services_come_from_the_defaults_and_get_the_values_of_a_matrix() -> None:
    text = """
        defaults:
          configuration: {container: i}
          services:
            db:
              container: "postgres:${VERSION}"
              ports: ["54${VERSION}"]
              args: ["${OTHER}"]
              env: {VERSION: "${VERSION}"}
        actions:
          test: {commands: [x], matrix: {VERSION: [17, 18]}, retry: {times: 1, reasons: [SERVICE_FAILED]}, class: big}
          own: {commands: [x], services: {redis: {container: redis:8}}}
          none: {commands: [x], services: {}}
    """
    *variants, own, none = parse(dedent(text), "ci.yaml").actions
    assert [each.services for each in variants] == [
        (Service("db", f"postgres:{n}", ports=(5400 + n,), args=("${OTHER}",), env={"VERSION": f"{n}"}),)
        for n in (17, 18)
    ]
    assert {Reason.SERVICE_FAILED} == variants[0].retry.reasons
    assert variants[0].action(Key("a"), {}).environment_class == "big"
    assert own.services == (Service("redis", "redis:8"),)
    assert none.services == ()
    assert none.features == frozenset()


def test_the_values_of_services_that_defaults_repeat_are_bounded() -> None:
    words = ", ".join(["x"] * 5000)
    defaults = f"{{configuration: {{container: i}}, services: {{db: {{container: i, args: [{words}]}}}}}}"
    text = f"defaults: {defaults}\nactions:\n"
    text += "".join(f"  a{number}: {{commands: [x]}}\n" for number in range(50))
    with pytest.raises(PipelineFileError, match="has more than 200000 values, counted with those that defaults"):
        parse(text, "ci.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services: [db]", "ci.yaml:4: services: must be a mapping from names to services, not a list"),
        ("services: {Db: {container: i}}", "ci.yaml:4: services.Db: is not the name of a service: 1 to 50 of a-z"),
        ("services: {db: {}}", "ci.yaml:4: services.db: `container` is missing: the image of the service"),
        ("services: {db: {image: i}}", "services.db.image: there is no such key, write configuration: {container"),
        ("services: {db: {container: i, ports: 1}}", "services.db.ports: must be a list of ports, not '1'"),
        ("services: {db: {container: i, ports: [0]}}", "services.db.ports[1]: must be a port from 1 to 65535, not '0'"),
        ("services: {db: {container: i, ports: [1, 1]}}", "services.db.ports[2]: 1 is listed twice"),
        (
            "services: {a: {container: i, ports: [1]}, b: {container: i, ports: [1]}}",
            "services.b: declares port 1, which a declares too",
        ),
        ("services: {db: {container: i, health: pg}}", "services.db.health: must be {command: [PROGRAM, ARGUMENT]}"),
        ("services: {db: {container: i, health: {}}}", "services.db.health: `command` is missing"),
        ("services: {db: {container: i, command: x y}}", "services.db.command: must be a list of words"),
        ("services: {db: {container: i, secrets: [NOPE]}}", "NOPE is not listed in the `secrets` of the action"),
        ("services: {db: {container: i, scratch: [data]}}", "must be an absolute path without '..', not 'data'"),
        ("services: {db: {container: i, aliases: [A_B]}}", "must be a host name of a-z, 0-9, '-' and dots, not 'A_B'"),
        ("services: {db: {container: i, on_exit: no}}", "must be one of crash-fails, any-fails, ignore, not 'no'"),
        ("services: {db: {container: i, log: liv}}", "not 'liv', did you mean 'live'?"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(PipelineFileError) as error:
        services(text)
    assert message in str(error.value)


def test_the_schema_has_the_keys_of_services() -> None:
    action = json.loads(schema.text())["definitions"]["action"]["properties"]
    service = action["services"]["additionalProperties"]
    assert service["required"] == ["container"]
    assert "ENTRYPOINT and CMD run" in service["properties"]["container"]["description"]

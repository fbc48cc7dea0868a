"""Services beside the commands of an action, on the real cluster: readiness, names, failures, logs and their end.

The services are small Python programs in the Debian image. Actions that do not disturb each other run side by side.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import DEBIAN, until

if TYPE_CHECKING:
    from tests.e2e.lab import Agent, Lab
    from tests.e2e.submission import Report

TIMEOUT = 15
# A server that waits, then listens at a port, and answers each connection with the age of its listening in seconds.
SERVER = """
import socket, sys, time
time.sleep(float(sys.argv[2]))
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
began = time.time()
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    try:
        connection.sendall(str(time.time() - began).encode())
    except OSError:
        pass
    connection.close()
"""
ASK = "import socket, sys; print('age', socket.create_connection((sys.argv[1], int(sys.argv[2]))).recv(99).decode())"


def server(port: int, wait: float = 0.0, **keys: Any) -> dict[str, Any]:
    """Return a service that listens at `port` after `wait` seconds. Each action has a network of its own."""
    return {"container": DEBIAN, "command": ["python3", "-c", SERVER, str(port), str(wait)], "ports": [port], **keys}


def shell(text: str, **keys: Any) -> dict[str, Any]:
    return {"container": DEBIAN, "command": ["sh", "-c", text], **keys}


def ask(host: str, port: int) -> str:
    return f'python3 -c "{ASK}" {host} {port}'


def action(*commands: str, image: str = DEBIAN, **services: Any) -> dict[str, Any]:
    return {"image": image, "commands": list(commands), "services": services, "artifacts": "none"}


def states(report: Report) -> list[tuple[str, str]]:
    return [(event["name"], event["state"]) for event in report.events if event["event"] == "service"]


def stages(report: Report) -> list[str]:
    return [event["stage"] for event in report.events if event["event"] == "stage"]


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    return {
        "services": {"timeout": f"{TIMEOUT}s", "cpu": "5m", "memory": "64Mi"},
        "policy": {"default_cpu": "5m", "default_memory": "16Mi", "pull_grace": "3s"},
    }


WORKS: dict[str, tuple[dict[str, Any], str]] = {
    "slow listener": (action(ask("db", 5000), db=server(5000, 2)), "age"),
    "alias": (action(ask("queue", 5000), "getent hosts db", db=server(5000, aliases=["queue"])), "127.0.0.1"),
    "two services": (action(ask("a", 1), ask("b", 2), a=server(1), b=server(2, 1)), "age"),
    "health command": (
        action("echo began", db=shell("sleep 2; touch /ready; sleep 60", health={"command": ["test", "-e", "/ready"]})),
        "began",
    ),
    "ports and health command": (
        action(
            ask("db", 5000),
            db=server(5000, health={"command": ["python3", "-c", "import os; os.stat('/proc/1')"], "timeout": "10s"}),
        ),
        "age",
    ),
    "neither": (action("echo began", db=shell("sleep 60")), "began"),
    "without a shell": (action("echo began", db={"container": "localhost/sealci-test/nosh:1"}), "began"),
    "ends with 0": (action("sleep 3; echo still", db=server(5000), job=shell("sleep 1")), "still"),
    "ignored crash": (action("sleep 3; echo still", db=shell("sleep 1; exit 3", on_exit="ignore")), "still"),
    "scratch": (action("echo began", db=shell("touch /data/x && sleep 60", scratch=["/data"])), "began"),
}
FAILS: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "dies before": (
        action("echo ran", db=shell("echo boom; exit 3", ports=[5000])),
        ("setup", "SERVICE_FAILED", "service db ended with exit code 3 before it was ready"),
    ),
    "never ready": (
        action("echo ran", db=shell("echo waiting; sleep 60", ports=[5000])),
        ("setup", "SERVICE_FAILED", f"service db did not accept on port 5000 within {TIMEOUT} s"),
    ),
    "unhealthy": (
        action("echo ran", db=shell("echo waiting; sleep 60", health={"command": ["false"], "timeout": "4s"})),
        ("setup", "SERVICE_FAILED", "the health command of service db did not succeed within 4 s"),
    ),
    "dies while": (
        action("echo began; sleep 60", db=server(5000), job=shell("sleep 3; echo boom; exit 4")),
        ("commands", "SERVICE_FAILED", "service job ended with exit code 4 while the commands ran"),
    ),
    "any end fails": (
        action("echo began; sleep 60", job=shell("sleep 3; echo boom", on_exit="any-fails")),
        ("commands", "SERVICE_FAILED", "service job ended with exit code 0 while the commands ran"),
    ),
    "memory": (
        action(
            "sleep 60",
            db={
                "container": DEBIAN,
                "command": ["python3", "-c", "import time; time.sleep(3); x = b'x' * (1 << 30)"],
                "resources": {"memory": "32Mi"},
            },
        ),
        ("commands", "SERVICE_FAILED", "service db was killed for memory while the commands ran (exit code 137)"),
    ),
    "one port": (
        action("sleep 60", a=server(5000), b=server(5000) | {"ports": []}),
        ("", "SERVICE_FAILED", "service b ended with exit code 1"),
    ),
    "no program": (
        action("echo ran", db={"container": DEBIAN, "command": ["/nope"]}),
        ("setup", "SERVICE_FAILED", "service db could not be started"),
    ),
    "no image": (
        action("echo ran", db={"container": "localhost/sealci-test/none:1"}),
        ("setup", "IMAGE_PULL_FAILED", "the image of service db cannot be pulled"),
    ),
    "dotted alias": (
        action("echo ran", db=server(5000, aliases=["git.example.com"])),
        ("admission", "INVALID_CONFIGURATION", "policy.service_aliases: none"),
    ),
}


def test_commands_start_when_all_services_are_ready(lab: Lab) -> None:
    reports = lab.run({name.replace(" ", "-"): each for name, (each, _) in WORKS.items()})
    for name, (_, text) in WORKS.items():
        report = reports[name.replace(" ", "-")]
        assert report.outcome == ("succeeded", None, 0), report
        assert text in report.text
        assert "\x1e" not in report.text, "a marker stands in the log"
        assert stages(report)[-1] == "commands"
    slow = reports["slow-listener"]
    assert states(slow) == [("db", "starting"), ("db", "ready")]
    details = [event["detail"] for event in slow.events if event["event"] == "stage"]
    assert "waiting for service db: port 5000" in details
    ages = re.findall(r"age (\S+)", "".join(each.text for each in reports.values()))
    print("seconds from the open port to the first command:", ages)
    # The commands began after the port was open, and the age of the port is no negative number.
    assert all(float(age) >= 0 for age in ages)
    assert ("job", "ended") in states(reports["ends-with-0"])
    assert ("db", "ended") in states(reports["ignored-crash"])


def test_a_failed_service_fails_the_action_with_its_name_and_its_last_lines(lab: Lab) -> None:
    reports = lab.run({name.replace(" ", "-"): each for name, (each, _) in FAILS.items()})
    for name, (_, (stage, reason, message)) in FAILS.items():
        report = reports[name.replace(" ", "-")]
        assert report.outcome == ("failed", reason, None), report
        assert message in report.finished["message"], report
        assert report.finished["stage"].startswith(stage)
        assert "ran" not in report.text.splitlines(), report
        assert "the log ends here" not in report.text
    for name, lines in {
        "dies-before": "[db] boom\n",
        "never-ready": "[db] waiting\n",
        "unhealthy": "[db] waiting\n",
        "dies-while": "[job] boom\n",
        "one-port": "Address already in use",
    }.items():
        assert lines in reports[name].text, reports[name]
        tail = [event for event in reports[name].events if event.get("source") == "service"]
        assert {event["service"] for event in tail} <= {"a", "b", "db", "job"}
    assert "Address already in use" in reports["one-port"].finished["message"]
    assert reports["dies-before"].finished["message"].endswith("before it was ready: boom")
    assert "began\n" in reports["dies-while"].text


COUNT = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo beat $i; sleep 0.2; done; sleep 60"


def of_service(report: Report, name: str) -> str:
    """Return the log of a service, without the name before each line."""
    lines = report.text.splitlines(keepends=True)
    return "".join(line.removeprefix(f"[{name}] ") for line in lines if line.startswith(f"[{name}] "))


def test_the_logs_of_services_and_their_secrets(lab: Lab) -> None:
    noise = shell("echo noise; sleep 60")
    live = {"log": "live"}
    asked = {
        "live": action("sleep 3", db=shell("echo one; sleep 1; echo two; sleep 60", **live)),
        "success": action("true", db=noise),
        "failure": action("exit 3", db=noise, silent=noise | {"log": "none"}),
        "secrets": {
            **action(
                "sleep 2",
                knows=shell('echo "token $TOKEN"; sleep 60', secrets=["TOKEN"], **live),
                lacks=shell('echo "token ${TOKEN-none}"; sleep 60', **live),
            ),
            "secrets": ["TOKEN"],
        },
        "deaf": action("true", db=shell("trap '' TERM; echo deaf; sleep 60; sleep 60")),
    }
    reports = lab.run(asked, secret_values={"TOKEN": "hunter2-hunter2"})
    assert of_service(reports["live"], "db") == "one\ntwo\n"
    assert "noise" not in reports["success"].text
    assert of_service(reports["failure"], "db") == "noise\n"
    assert "[silent]" not in reports["failure"].text
    assert reports["failure"].outcome == ("failed", "COMMAND_FAILED", 3)
    assert of_service(reports["secrets"], "knows") == "token ***\n"
    assert of_service(reports["secrets"], "lacks") == "token none\n"
    # A service that ignores TERM gets KILL after a second.
    (deaf,) = lab.action_ids(reports["deaf"])
    until(
        lambda: any(pod["metadata"].get("deletionGracePeriodSeconds") == 1 for pod in lab.observer.pods(deaf)),
        "the pod was not deleted with a grace period of 1 s",
    )


def test_another_agent_goes_on_while_services_start_and_while_the_commands_run(own_lab: Lab) -> None:
    quick = {"cluster": {"lease_duration": "4s", "lease_renew": "1s"}}
    slow = shell("sleep 12; touch /ready; sleep 60", health={"command": ["test", "-e", "/ready"]})
    asked = {
        "waiting-for-health": action("echo began", db=slow),
        "waiting-for-port": action(ask("db", 5000), db=server(5000, 12)),
        "running": action("sleep 8; echo end", db=shell(COUNT, log="live")),
    }
    first = own_lab.agent(**quick)
    submission = own_lab.start(asked)
    submission.until_running("running", "[db] beat 3\n")
    second = own_lab.agent(**quick)
    first.kill()
    reports = submission.wait(120)
    for report in reports.values():
        assert report.outcome == ("succeeded", None, 0), report
    assert second.log.count("adopted a session") == 3
    assert of_service(reports["running"], "db") == "".join(f"beat {n}\n" for n in range(1, 21))
    assert "began\n" in reports["waiting-for-health"].text
    assert "age " in reports["waiting-for-port"].text


def requests_of(agent: Agent) -> dict[str, float]:
    """Return the number of requests of an agent to the API, by verb and resource, without those of the agent itself."""
    found: dict[str, float] = {}
    line = re.compile(
        r'^sealci_agent_k8s_requests_total\{code="\w+",resource="([^"]+)",verb="(\w+)"\} (\S+)$', re.MULTILINE
    )
    for resource, verb, number in line.findall(agent.get("/metrics")[1]):
        if resource in ("pods", "pods/log", "pods/exec", "secrets", "events") and verb not in ("list", "watch"):
            found[f"{verb} {resource}"] = found.get(f"{verb} {resource}", 0.0) + float(number)
    return {name: number for name, number in found.items() if number}


def test_services_cost_no_request_with_ports_and_one_with_a_health_command(own_lab: Lab) -> None:
    # Nudges would add requests of their own.
    agent = own_lab.agent(environment={"nudge_kubelet": False})
    plain = {"create pods": 1, "get pods/log": 1, "delete pods": 1}
    asked = {
        "none": action("true"),
        "ports": action(ask("a", 1), a=server(1), b=server(2)),
        "health": action("true", a=server(1), b=shell("sleep 60", health={"command": ["true"]})),
        "neither": action("true", b=shell("sleep 60")),
        "failure": action("false", a=server(1), b=server(2)),
    }
    expected: dict[str, dict[str, int]] = {
        "none": {},
        "ports": {},
        "health": {"get pods/exec": 1},
        "neither": {"get pods/exec": 1},
        "failure": {"get pods/log": 3},
    }
    before = requests_of(agent)
    for name, each in asked.items():
        own_lab.run({name: each})
        until(lambda: "slots_used 0.0" in agent.get("/metrics")[1], "the slot is not free")
        after = requests_of(agent)
        found = {key: number - before.get(key, 0) for key, number in after.items() if number != before.get(key, 0)}
        exec_verb = {key.replace("create pods/exec", "get pods/exec"): number for key, number in found.items()}
        assert exec_verb == plain | expected[name], name
        before = after


def test_the_restricted_profile_names_what_an_image_needs(own_lab: Lab) -> None:
    own_lab.agent(environment={"profile": "restricted"}, policy={"default_cpu": "5m"})
    reports = own_lab.run(
        {
            "works": action(ask("db", 5000), db=server(5000)),
            "scratch": action(
                "echo began", db=shell("touch /data/x && id -u && sleep 60", scratch=["/data"], log="live")
            ),
            "root": action("echo ran", db=shell("mkdir /var/lib/db", ports=[5000])),
        }
    )
    assert reports["works"].outcome == ("succeeded", None, 0), reports["works"]
    assert of_service(reports["scratch"], "db") == "65532\n"
    message = reports["root"].finished["message"]
    assert "service db ended with exit code 1 before it was ready" in message
    assert "runs it as user 65532: give the folders that it writes to in `scratch`" in message

"""Services beside the commands of an action, on the real cluster: readiness, names, failures, logs and their end.

The services are small Python programs in the Debian image. Actions that do not disturb each other run side by side.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import kube
from tests.e2e.lab import DEBIAN, until

if TYPE_CHECKING:
    from tests.e2e.lab import Agent, Lab
    from tests.e2e.submission import Report

TIMEOUT = 10
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
# A program that listens at a port until the commands connect to it, and then runs its second argument.
AWAITED = """
import socket, sys
socket.create_server(("127.0.0.1", int(sys.argv[1]))).accept()
print("boom", flush=True)
exec(sys.argv[2])
"""
ASK = "import socket, sys; print('age', socket.create_connection((sys.argv[1], int(sys.argv[2]))).recv(99).decode())"


def server(port: int, wait: float = 0.0, **keys: Any) -> dict[str, Any]:
    """Return a service that listens at `port` after `wait` seconds. Each action has a network of its own."""
    return {"container": DEBIAN, "command": ["python3", "-c", SERVER, str(port), str(wait)], "ports": [port], **keys}


def awaited(program: str, **keys: Any) -> dict[str, Any]:
    """Return a service that prints "boom" and runs `program` when the commands run `KNOCK`."""
    return {"container": DEBIAN, "command": ["python3", "-c", AWAITED, "6000", program], **keys}


KNOCK = "until python3 -c \"import socket; socket.create_connection(('job', 6000))\" 2>/dev/null; do sleep 0.1; done"


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
        # No registry answers at localhost, so the limit of a missing image is `registry_grace`.
        "policy": {"default_cpu": "5m", "default_memory": "16Mi", "registry_grace": "3s"},
        "agent": {"slots": 40},
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
    "ends with 0": (action(f"{KNOCK}; sleep 2; echo still", db=server(5000), job=awaited("")), "still"),
    "ignored crash": (action(f"{KNOCK}; sleep 2; echo still", job=awaited("exit(3)", on_exit="ignore")), "still"),
    "scratch": (action("echo began", db=shell("touch /data/x && sleep 60", scratch=["/data"])), "began"),
}
FAILS: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "dies before": (
        action("echo ran", db=shell("seq 100000 130000; echo boom; exit 3", ports=[5000])),
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
        action(
            f"trap 'echo got TERM; exit 1' TERM; echo began; {KNOCK}; sleep 60 & wait",
            db=server(5000),
            job=awaited("exit(4)"),
        ),
        ("commands", "SERVICE_FAILED", "service job ended with exit code 4 while the commands ran"),
    ),
    "any end fails": (
        action(f"{KNOCK}; sleep 60", job=awaited("", on_exit="any-fails")),
        ("commands", "SERVICE_FAILED", "service job ended with exit code 0 while the commands ran"),
    ),
    "memory": (
        action(f"{KNOCK}; sleep 60", job=awaited("b'x' * (1 << 30)", resources={"memory": "32Mi"})),
        ("commands", "SERVICE_FAILED", "service job was killed for memory while the commands ran (exit code 137)"),
    ),
    "one port": (
        action("sleep 60", a=server(5000), b=server(5000, 1) | {"ports": []}),
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
    assert ("job", "ended") in states(reports["ignored-crash"])


NOISE = shell("echo noise; sleep 60")
LIVE = {"log": "live"}
LOGS: dict[str, dict[str, Any]] = {
    "live": action("sleep 3", db=shell("echo one; sleep 1; echo two; sleep 60", **LIVE)),
    "success": action("true", db=NOISE),
    "failure": action("exit 3", db=NOISE, silent=NOISE | {"log": "none"}),
    "secrets": {
        **action(
            "sleep 2",
            knows=shell('echo "token $TOKEN"; sleep 60', secrets=["TOKEN"], **LIVE),
            lacks=shell('echo "token ${TOKEN-none}"; sleep 60', **LIVE),
        ),
        "secrets": ["TOKEN"],
    },
    "deaf": action("true", db=shell("trap '' TERM; echo deaf; sleep 60; sleep 60")),
}
COUNT = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo beat $i; sleep 0.2; done; sleep 60"


@pytest.fixture(scope="module")
def reports(lab: Lab) -> dict[str, Report]:
    """Run all actions that wait most of their time, side by side."""
    asked = {name.replace(" ", "-"): each for name, (each, _) in FAILS.items()} | LOGS
    return lab.run(asked, secret_values={"TOKEN": "hunter2-hunter2"})


def of_service(report: Report, name: str) -> str:
    """Return the log of a service, without the name before each line."""
    lines = report.text.splitlines(keepends=True)
    return "".join(line.removeprefix(f"[{name}] ") for line in lines if line.startswith(f"[{name}] "))


@pytest.mark.parametrize("name", FAILS)
def test_a_failed_service_fails_the_action_with_its_name(reports: dict[str, Report], name: str) -> None:
    report, (stage, reason, message) = reports[name.replace(" ", "-")], FAILS[name][1]
    assert report.outcome == ("failed", reason, None), report
    assert message in report.finished["message"], report
    assert report.finished["stage"].startswith(stage)
    assert "ran" not in report.text.splitlines(), report
    assert "the log ends here" not in report.text


def test_the_last_lines_of_a_failed_service_are_sent(reports: dict[str, Report]) -> None:
    last = "".join(f"{number}\n" for number in range(129_002, 130_001))
    assert of_service(reports["dies-before"], "db") == f"{last}boom\n"
    assert of_service(reports["never-ready"], "db") == "waiting\n"
    assert of_service(reports["unhealthy"], "db") == "waiting\n"
    assert of_service(reports["dies-while"], "job") == "boom\n"
    assert "Address already in use" in of_service(reports["one-port"], "b")
    assert "Address already in use" in reports["one-port"].finished["message"]
    assert reports["dies-before"].finished["message"].endswith("before it was ready: boom")
    # The commands are stopped as by a cancellation.
    assert "\ngot TERM\n" in reports["dies-while"].text


def test_the_logs_of_services_and_their_secrets(reports: dict[str, Report]) -> None:
    assert of_service(reports["live"], "db") == "one\ntwo\n"
    assert "noise" not in reports["success"].text
    assert of_service(reports["failure"], "db") == "noise\n"
    assert "[silent]" not in reports["failure"].text
    assert reports["failure"].outcome == ("failed", "COMMAND_FAILED", 3)
    assert of_service(reports["secrets"], "knows") == "token ***\n"
    assert of_service(reports["secrets"], "lacks") == "token none\n"


def test_a_service_that_ignores_term_is_killed_after_a_second(reports: dict[str, Report], lab: Lab) -> None:
    (deaf,) = lab.action_ids(reports["deaf"])
    uid = lab.observer.pods(deaf)[0]["metadata"]["uid"]
    until(lambda: uid in lab.observer.gone, "the pod is not gone")
    graces = {pod["metadata"].get("deletionGracePeriodSeconds") for pod in lab.observer.pods(deaf)}
    assert graces - {None, 0} == {1}, "the pod was deleted with another grace period than 1 s"
    since_end, since_delete = (lab.observer.gone[uid] - at[uid] for at in (lab.observer.ended, lab.observer.deleting))
    print(f"\n  a pod whose service ignores TERM was gone {since_delete:.1f} s after the request to delete it, and")
    print(f"  {since_end:.1f} s after the end of its commands")


def test_another_agent_goes_on_while_services_start_and_while_the_commands_run(own_lab: Lab) -> None:
    quick = {"cluster": {"lease_duration": "4s", "lease_renew": "1s"}, "services": {"timeout": "30s"}}
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


# The kinds of requests that only agents send, by verb and resource as the API server counts them.
OF_AGENTS = {
    ("POST", "pods", ""): "create pods",
    ("POST", "secrets", ""): "create secrets",
    ("CONNECT", "pods", "exec"): "exec",
    ("CONNECT", "pods", "log"): "log",
    ("GET", "pods", "log"): "log",
    ("PATCH", "pods", "resize"): "resize",
}
OF_THE_AGENT = {
    "get pods/log": "log",
    "get pods/exec": "exec",
    "create pods/exec": "exec",
    "patch pods/resize": "resize",
}


def requests_at_the_server() -> dict[str, int]:
    """Return how many requests of the kinds that only agents send the API server has answered."""
    found: dict[str, int] = {}
    text = kube.kubectl("get", "--raw", "/metrics")
    for labels, number in re.findall(r"^apiserver_request_total\{(.*)\} (\S+)$", text, re.MULTILINE):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if kind := OF_AGENTS.get((label["verb"], label["resource"], label["subresource"])):
            found[kind] = found.get(kind, 0) + int(float(number))
    return found


def requests_of(agent: Agent) -> dict[str, int]:
    """Return how many requests about pods and Secrets an agent has counted, without those of its watches."""
    found: dict[str, int] = {}
    line = (
        r'^sealci_agent_k8s_requests_total\{code="\w+",resource="((?:pods|secrets|events)[^"]*)",verb="(\w+)"\} (\S+)$'
    )
    for resource, verb, number in re.findall(line, agent.get("/metrics")[1], re.MULTILINE):
        if verb not in ("list", "watch"):
            kind = OF_THE_AGENT.get(f"{verb} {resource}", f"{verb} {resource}")
            found[kind] = found.get(kind, 0) + int(float(number))
    return found


def added(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """Return how many requests were added since `before`, without the kinds of which there are no more."""
    return {kind: number - before.get(kind, 0) for kind, number in now.items() if number != before.get(kind, 0)}


@pytest.mark.alone
def test_services_cost_no_request_with_ports_and_one_with_a_health_command(own_lab: Lab) -> None:
    """The API server counts the requests of all agents, so no other agent may run."""
    # Nudges would add requests of their own.
    agent = own_lab.agent(environment={"nudge_kubelet": False})
    plain = {
        "none": action("true"),
        "ports": action(ask("a", 1), a=server(1), b=server(2)),
        "failure": action("false", a=server(1), b=server(2)),
    }
    released = {
        "health": action("true", a=server(1), b=shell("sleep 60", health={"command": ["true"]})),
        "neither": action("true", b=shell("sleep 60")),
    }
    # After a failure, the agent reads the log of each service.
    for asked, logs, more in ((plain, 2, {}), (released, 0, {"exec": 2})):
        own, at_server = requests_of(agent), requests_at_the_server()
        own_lab.run(asked)
        until(lambda: "slots_used 0.0" in agent.get("/metrics")[1], "a slot is in use")
        expected = {"create pods": len(asked), "log": len(asked) + logs} | more
        assert added(requests_of(agent), own) == expected | {"delete pods": len(asked)}
        # The API server counts an exec or a log when its connection has ended.
        until(lambda: added(requests_at_the_server(), at_server) == expected, f"{expected} {at_server}", 5)  # noqa: B023


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

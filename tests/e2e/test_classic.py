"""The classic protocol on a real cluster: a scheduler with the protocol of SealCI 0.2 sends actions to an agent.

The scheduler runs in the process of the test, so each test is a coroutine. The agent is a process. After each test, all
pods and Secrets of actions must be deleted.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from deploy.demo.source import git, serve_git
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, DEBIAN, Agent, until
from tests.e2e.observer import Observer, remains
from tests.e2e.release import Release
from tests.fakes.classic import Answer, ClassicScheduler, asked, read, until_text
from tests.fakes.waiting import LONG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SLOTS = 20


class ClassicLab:
    """A scheduler that uses the classic protocol, and its agents in one namespace.

    A ClassicLab has those attributes of the class Lab that the class Agent uses.
    """

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self.folder = folder
        self.pool = f"classic-{secrets.token_hex(3)}"
        self.scheduler = ClassicScheduler()
        self.observer = Observer(namespace)
        self.agents: list[Agent] = []

    @property
    def address(self) -> str:
        return self.scheduler.address

    async def agent(self, **cluster: Any) -> Agent:
        """Start an agent and wait until it is registered and ready."""
        classic = {"listen": "127.0.0.1", "port": 0, "files": str(self.folder / "files"), "echo": False}
        settings = {
            "scheduler": {"protocol": "classic", "classic": classic, "reconnect_max": "1s"},
            "agent": {"slots": SLOTS},
            "cluster": cluster,
            "policy": {"repository_schemes": ["https", "git"], "registry_grace": "1s"},
        }
        agent = Agent(self, len(self.agents), settings)  # type: ignore[arg-type]  # it has the attributes that an Agent uses
        self.agents.append(agent)
        await asyncio.to_thread(agent.until_ready)
        await self.scheduler.registered()
        return agent

    async def clean(self) -> None:
        """Wait until no pod and no Secret of an agent is left."""
        left = ["?"]
        async with asyncio.timeout(90):
            while left:
                left = await asyncio.to_thread(remains, self.namespace)
                print(f"  remains: {left}" if left else "  no remains")


@pytest.fixture
async def lab(namespace: str, tmp_path: Path) -> AsyncIterator[ClassicLab]:
    """Yield a lab with a running scheduler. At the end, check that the agents stop cleanly and that nothing is left."""
    lab = ClassicLab(namespace, tmp_path)
    await lab.scheduler.start()
    try:
        yield lab
        await lab.clean()
        for agent in lab.agents:
            await asyncio.to_thread(agent.stop)
            agent.check([])
        lab.observer.check_pods()
    finally:
        for agent in lab.agents:
            agent.kill()
        await lab.scheduler.stop()
        await asyncio.to_thread(lab.observer.close)


async def test_success_failure_and_a_missing_image(lab: ClassicLab) -> None:
    """An action has the exit code of its failed command, and later commands do not run.

    If an image is missing, the log names the image.
    """
    await lab.agent()
    run = lab.scheduler.run
    good, bad, missing, slow = await asyncio.gather(
        run(BUSYBOX, "echo one", "cd /tmp; echo two", "pwd", number=1),
        run(BUSYBOX, "echo begun", "exit 42", "echo later", number=2),
        run("localhost/sealci-test/there-is-none:1", "echo never", number=3),
        run(BUSYBOX, "mkdir out && echo made > out/file", r"printf 'caf\351\n'", number=4),
    )
    assert (good.code, good.exit_code, good.text) == (grpc.StatusCode.OK, 0, "one\ntwo\n/tmp\n")
    assert good.statuses == [1, 2, 3]
    assert (bad.code, bad.exit_code) == (grpc.StatusCode.OK, 42)
    assert bad.text.startswith("begun\n")
    assert "later" not in bad.text
    assert (missing.code, missing.exit_code) == (grpc.StatusCode.OK, 125)
    assert "there-is-none" in missing.text
    assert "never" not in missing.text
    assert slow.exit_code == 0
    (folder,) = (lab.folder / "files").glob("4-*")
    assert slow.text == f"caf\ufffd\n[1 file (5 bytes) kept by the agent on {socket.gethostname()} in {folder}]\n"
    assert (folder / "out" / "file").read_text() == "made\n"
    assert not list((lab.folder / "files").glob("2-*"))


async def test_a_repository_is_cloned_and_built(lab: ClassicLab, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "program.py").write_text("print('built from a clone')\n")
    (work / "build.sh").write_text("set -e\ntest -d .git\nmkdir -p dist\ncp program.py dist/\nls dist\n")
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(work))
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message", "first")
    git(tmp_path, "clone", "--quiet", "--bare", str(work), str(tmp_path / "thing.git"))
    await lab.agent()
    address = (await asyncio.to_thread(kube.provider, "address")).splitlines()[-1]
    with serve_git(tmp_path, address) as url:
        built = await lab.scheduler.run(DEBIAN, "sh build.sh", "git log --format=%s", repo_url=f"{url}/thing.git")
        none = await lab.scheduler.run(DEBIAN, "true", repo_url=f"{url}/none.git")
    assert built.exit_code == 0, built.text
    (folder,) = (lab.folder / "files").iterdir()
    assert built.text.splitlines()[:2] == ["program.py", "first"]
    assert (folder / "dist" / "program.py").read_text() == "print('built from a clone')\n"
    assert none.exit_code == 125
    assert "none.git" in none.text


async def test_twenty_actions_run_at_once_and_one_waits(lab: ClassicLab) -> None:
    await lab.agent()
    address = (await asyncio.to_thread(kube.provider, "address")).splitlines()[-1]
    gate = asyncio.Event()

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.close()

    async with await asyncio.start_server(hold, address, 0) as server:
        wait = f"nc {address} {server.sockets[0].getsockname()[1]}"
        answers = [Answer() for _ in range(SLOTS)]
        calls = [lab.scheduler.dial(asked(BUSYBOX, f"echo {n}", wait, number=n)) for n in range(SLOTS)]
        both = list(zip(calls, answers, strict=True))
        await asyncio.gather(*(until_text(call, answer, "\n") for call, answer in both))
        entry = lab.scheduler.best()
        await lab.scheduler.until("the agent reports a load of 100 %", lambda: entry.load == 100, LONG)
        waiting, last = lab.scheduler.dial(asked(BUSYBOX, "echo last", number=99)), Answer()
        await until_text(waiting, last, "]\n")
        gate.set()
        await asyncio.gather(*(read(call, answer) for call, answer in [*both, (waiting, last)]))
    assert [(answer.exit_code, answer.text) for answer in answers] == [(0, f"{n}\n") for n in range(SLOTS)]
    assert (last.exit_code, last.text) == (0, f"[the action waits for one of {SLOTS} slots]\nlast\n")
    await lab.scheduler.until("the agent reports no load", lambda: entry.load == 0, LONG)


async def test_a_disconnected_client_and_a_restarted_scheduler(lab: ClassicLab) -> None:
    agent = await lab.agent()
    call, answer = lab.scheduler.dial(asked(BUSYBOX, "echo begun; sleep 300")), Answer()
    await until_text(call, answer, "begun")
    call.cancel()
    await lab.clean()
    calls = [lab.scheduler.dial(asked(BUSYBOX, "echo begun; sleep 300", number=n)) for n in range(3)]
    for each in calls:
        await until_text(each, Answer(), "begun")
    await lab.scheduler.stop()
    await lab.clean()
    await lab.scheduler.start()
    entry = await lab.scheduler.registered()
    assert entry.load == 0
    assert (await lab.scheduler.run(BUSYBOX, "echo again", number=0)).text == "again\n"
    assert agent.log.count('"event": "registered with the scheduler"') == 2
    assert agent.log.count('"outcome": "cancelled"') == 4


async def test_the_next_agent_sweeps_the_orphans_of_a_killed_agent(lab: ClassicLab) -> None:
    first = await lab.agent()
    call, answer = lab.scheduler.dial(asked(BUSYBOX, "echo begun; sleep 300")), Answer()
    await until_text(call, answer, "begun")
    first.kill()
    await read(call, answer)
    # If the agent dies, the scheduler ends the stream to the scheduler's client with status OK, as after a success. But
    # this stream then contains no exit code.
    assert (answer.code, answer.exit_code) == (grpc.StatusCode.OK, None)
    lab.agents.remove(first)
    assert await asyncio.to_thread(remains, lab.namespace)
    second = await lab.agent(sweep_interval="1s", lease_duration="3s", lease_renew="1s")
    await asyncio.to_thread(until, lambda: "deleting an orphaned pod" in second.log, "the second agent did not sweep")
    await lab.clean()
    assert "adopted" not in second.log


async def test_drain_lets_running_actions_end_and_refuses_new_ones(lab: ClassicLab) -> None:
    agent = await lab.agent()
    call, answer = lab.scheduler.dial(asked(BUSYBOX, "echo begun; sleep 3; echo done")), Answer()
    await until_text(call, answer, "begun")
    entry = lab.scheduler.best()
    agent.process.terminate()
    await lab.scheduler.until("the agent reports the maximum", lambda: entry.is_last, LONG)
    refused = Answer()
    await read(lab.scheduler.dial(asked(BUSYBOX, "echo no"), entry), refused)
    assert (refused.code, refused.exit_code) == (grpc.StatusCode.OK, 125)
    assert refused.text == "[the agent is leaving; the action was not run]\n"
    await read(call, answer)
    assert (answer.exit_code, answer.text) == (0, "begun\ndone\n")
    assert await asyncio.to_thread(agent.process.wait, 30) == 0
    await lab.scheduler.until("the agent has left", lambda: entry.gone, LONG)


async def test_agents_of_the_chart_are_dialed_back_at_their_service(namespace: str) -> None:
    scheduler = ClassicScheduler((await asyncio.to_thread(kube.provider, "address")).splitlines()[-1])
    await scheduler.start()
    classic = {"address": scheduler.address, "protocol": "classic", "tls": {"enabled": False}}
    values = {
        "scheduler": classic,
        "networkPolicy": {"agent": {"schedulerFrom": [{"ipBlock": {"cidr": f"{scheduler.host}/32"}}]}},
        "cluster": {"namespace": namespace},
        "policy": {"default_cpu": "5m", "default_memory": "16Mi"},
    }
    release = Release(f"c{secrets.token_hex(2)}", f"{namespace}-classic", values)
    try:
        await asyncio.to_thread(release.install)
        async with asyncio.timeout(30):
            entry = await scheduler.registered()
        service = f"{release.name}-sealci-agent-classic"
        assert (entry.host, entry.port) == (f"http://{service}.{release.namespace}.svc", 7081)
        (pod,) = await asyncio.to_thread(release.agents)
        find = ("get", "endpoints", service, "--namespace", release.namespace, "--output", "json")
        await asyncio.to_thread(
            until, lambda: pod["status"]["podIP"] in kube.kubectl(*find), "the pod is no endpoint of the Service", 30
        )
        # The scheduler runs outside the cluster, so it cannot dial a Service or a DNS name. It dials the pod's IP
        # address.
        entry.host = f"http://{pod['status']['podIP']}"
        answer = await scheduler.run(BUSYBOX, "echo from a pod", number=1)
        assert (answer.exit_code, "from a pod\n" in answer.text) == (0, True)
    finally:
        await asyncio.to_thread(release.uninstall)
        await scheduler.stop()
        await asyncio.to_thread(kube.kubectl, "delete", "namespace", release.namespace, "--wait=false")
    await asyncio.to_thread(until, lambda: not remains(namespace), "something of ours remains", 60)

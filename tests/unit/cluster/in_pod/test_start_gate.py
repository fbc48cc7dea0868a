"""The gate of the helper: the commands start when the ports of all services accept and the agent has sent its words.

The helper runs as a real process, and the services are real sockets.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from agent.cluster import packaging
from agent.cluster.in_pod import start_gate
from agent.cluster.in_pod.start_gate import StartGate
from tests.unit.cluster.in_pod.test_helper import DEADLINE, Helper, helper, wait_until

NONCE = "5ea1c15ea1c15ea1"


def gate(*ports: tuple[int, int], seconds: float = DEADLINE, release: bool = False, tree: bool = False) -> object:
    return {"ports": ports, "names": ["db", "queue"], "seconds": seconds, "release": release, "tree": tree}


def marker(number: int) -> bytes:
    return f"\x1esealci:{NONCE}:r:{number}\n".encode()


def send(running: Helper, word: str) -> None:
    argv = [sys.executable, *packaging.gate_program()[1:], str(running.folder / "gate"), word]
    subprocess.run(argv, check=True, timeout=DEADLINE)


def free_ports(count: int) -> list[socket.socket]:
    """Return sockets that are bound to free ports and do not listen yet."""
    found = [socket.socket() for _ in range(count)]
    for each in found:
        each.bind(("127.0.0.1", 0))
    return found


def test_the_commands_start_when_the_ports_of_all_services_accept(tmp_path: Path) -> None:
    sockets = free_ports(3)
    (_, a), (_, b), (_, c) = (each.getsockname() for each in sockets)
    with helper(tmp_path, gate=gate((1, a), (1, b), (2, c))) as running:
        running.start_pid_1()
        sockets[0].listen()
        sockets[2].listen()
        # Service 1 has a second port.
        wait_until(lambda: running.log == marker(2))
        assert running.answers() == ""
        sockets[1].listen()
        wait_until(lambda: running.answers() == "run\n")
        assert running.log == marker(2) + marker(1)
        wait_until(lambda: [each.payload for each in running.read()] == [marker(2), marker(1)])
    for each in sockets:
        each.close()


def test_the_commands_wait_for_the_words_of_the_agent_too(tmp_path: Path) -> None:
    (server,) = free_ports(1)
    with helper(tmp_path, gate=gate((1, server.getsockname()[1]), release=True, tree=True)) as running:
        running.start_pid_1()
        send(running, "release")
        send(running, "release")
        server.listen()
        wait_until(lambda: running.log == marker(1))
        assert running.answers() == ""
        send(running, "tree")
        wait_until(lambda: running.answers() == "run\n")
        # A word that comes too late changes nothing.
        send(running, "release")
        assert running.answers() == ""
    server.close()


def test_the_commands_wait_for_services_and_inputs(tmp_path: Path) -> None:
    (server,) = free_ports(1)
    server.listen()
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    header = {"path": "a/x", "mode": 0o644, "size": 1, "sha256": hashlib.sha256(b"1").hexdigest()}
    data = json.dumps(header).encode() + b"\n1" + b'{"end": 1}\n'
    changes = {"workspace": str(workspace), "start": False, "snapshot": True, "change_owner": True}
    waits_for = gate((1, server.getsockname()[1]), tree=True)
    with helper(tmp_path, f"here {os.geteuid()} {os.getegid()}", gate=waits_for, **changes) as running:
        words = (workspace, "", running.folder / "gate", running.folder, "tree")
        argv = [sys.executable, *packaging.receive_inputs_program()[1:], *map(str, words)]

        def receive() -> object:
            done = subprocess.run(argv, input=data, capture_output=True, check=True, timeout=DEADLINE)
            return json.loads(done.stdout)

        wait_until(lambda: running.log == marker(1))
        assert running.answers() == ""
        assert receive() == {"files": 1, "bytes": 1}
        wait_until(lambda: running.answers() == "run\n")
        assert b"a/x" in running.snapshot.read_bytes(), "the helper takes the snapshot when the workspace is complete"
        # An adopting agent repeats the errand. The commands may have changed the files since.
        (workspace / "a" / "x").unlink()
        assert receive() == {"started": True}
        assert not (workspace / "a" / "x").exists()
        assert running.answers() == ""
    server.close()


def test_a_port_that_does_not_accept_in_time_ends_the_helper(tmp_path: Path) -> None:
    (server,) = free_ports(1)
    with helper(tmp_path, gate=gate((2, server.getsockname()[1]), seconds=0.2)) as running:
        # The time counts from the start of container `action`, which may wait for its image.
        assert running.process.poll() is None
        running.start_pid_1()
        assert running.process.wait(DEADLINE) == start_gate.NOT_READY
        assert running.answers() == ""
    server.close()


def test_no_command_starts_after_the_end_of_container_action_or_after_term(tmp_path: Path) -> None:
    (server,) = free_ports(1)
    port = server.getsockname()[1]
    for name in ("exit", "term"):
        (tmp_path / name).mkdir()
        with helper(tmp_path / name, gate=gate((1, port))) as running:
            log, control = running.start_pid_1()
            if name == "term":
                running.process.send_signal(signal.SIGTERM)
            os.close(log)
            os.close(control)
            if name == "exit":
                running.end()
            else:
                assert running.process.wait(DEADLINE) == 0
            assert running.answers() == ""
    server.close()


def test_a_full_log_has_room_for_the_markers_of_services(tmp_path: Path) -> None:
    (server,) = free_ports(1)
    server.listen()
    with helper(tmp_path, gate=gate((1, server.getsockname()[1])), log_limit=0) as running:
        wait_until(lambda: running.log == marker(1))
    server.close()


def test_the_pause_between_two_dials_stays_a_small_share_of_the_wait(tmp_path: Path) -> None:
    (server,) = free_ports(1)
    order = {"nonce": NONCE, "gate": gate((1, server.getsockname()[1]))}
    found = StartGate(order, str(tmp_path), 1000.0)
    for waited, pause in ((0.0, 0.05), (2.0, 0.05), (5.0, 0.1), (49.0, 0.98), (100.0, 1.0)):
        found.next_dial = 0.0
        assert found.dial(1000.0 + waited) == []
        assert abs(found.next_dial - 1000.0 - waited - pause) < 0.001
    os.close(found.fifo)
    server.close()

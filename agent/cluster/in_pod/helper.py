"""PID 1 of container `helper`: give container `action` its order, keep the log, and keep the files reachable.

`packaging` sends this source to the pod, with the sources of `workspace`, `order`, `start_gate` and `log_keeper`
(Python 3.9, standard library). The program lives from the start of the pod until TERM or its deadline. Container
`action` waits for the FIFO `go`, so the program creates the FIFOs before it does anything that costs time.
"""

from __future__ import annotations

import os
import signal
import time

from agent.cluster.in_pod.log_keeper import LogKeeper
from agent.cluster.in_pod.order import GO, SUPERVISOR, read_order, write, write_order
from agent.cluster.in_pod.start_gate import StartGate
from agent.cluster.in_pod.workspace import change_owner, start_commands, take_snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def main(arguments: list[str], scripts: Mapping[str, str]) -> None:
    """Run with the arguments FOLDER LOG_FOLDER SNAPSHOT. SCRIPTS are the texts of the supervisor's shell scripts."""
    folder, log_folder, snapshot = arguments
    began = time.monotonic()
    # PID 1 becomes the parent of processes whose parent has ended, and has to reap them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    keeper = LogKeeper(folder, log_folder, began + 3600.0)
    write(folder, SUPERVISOR, scripts["supervisor"])
    keeper.open_for_commands()
    order = read_order(os.environ)
    keeper.deadline = began + order["seconds"]
    keeper.limit, keeper.drain, keeper.copy.key = order["log_limit"], order["drain"], order["log_key"]
    write_order(order, folder, scripts["setup"])
    if not order["snapshot"]:
        snapshot = ""
    if order["change_owner"]:
        snapshot = hand_over(keeper, order["workspace"], snapshot)

    def start() -> None:
        start_commands(order["workspace"], snapshot, folder + "/" + GO)

    if order["gate"]:
        if snapshot and order["start"]:
            take_snapshot(order["workspace"], snapshot)
            snapshot = ""
        keeper.hold_commands(StartGate(order, log_folder, time.monotonic()), start)
    elif order["start"]:
        start()
    keeper.run()
    keeper.stay()


def hand_over(keeper: LogKeeper, workspace: str, snapshot: str) -> str:
    """Make the user of the commands the owner of the cloned files.

    Return the path SNAPSHOT if the snapshot must still be taken, else "". Most images run as root, and root owns the
    cloned files already. So the snapshot is taken while the kubelet pulls the image. A new owner changes the ctime of
    all files, and the snapshot must be taken again.
    """
    if snapshot:
        take_snapshot(workspace, snapshot)
    user = keeper.wait_for_user()
    return snapshot if user and change_owner(workspace, *user) else ""

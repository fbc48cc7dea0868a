"""PID 1 of container `helper`: give container `action` its order, keep the log, and keep the files reachable.

`packaging` sends this source to the pod, with the sources of `workspace`, `order`, `start_gate`, `log_keeper` and
`order_server` (Python 3.9, standard library). The program lives from the start of the pod until TERM or its deadline.
Container `action` waits for the FIFO `go`, so the program creates the FIFOs before it does anything that costs time.
"""

from __future__ import annotations

import os
import signal
import time

from agent.cluster.in_pod.log_keeper import LogKeeper
from agent.cluster.in_pod.order import GO, IDLE_SECONDS, LEAVE, SUPERVISOR, read_order, write, write_order
from agent.cluster.in_pod.order_server import OrderServer
from agent.cluster.in_pod.start_gate import StartGate
from agent.cluster.in_pod.workspace import USER, change_owner, start_commands, take_snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.cluster.in_pod.order import Order

# Seconds until PID 1 of container `action` must be there when a warm pod gets its order.
PRESENT_SECONDS = 2.0


def main(arguments: list[str], scripts: Mapping[str, str]) -> None:
    """Run with the arguments FOLDER LOG_FOLDER SNAPSHOT. SCRIPTS are the texts of the supervisor's shell scripts."""
    folder, log_folder, snapshot = arguments
    began = time.monotonic()
    # PID 1 becomes the parent of processes whose parent has ended, and has to reap them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    keeper = LogKeeper(folder, log_folder, began + 3600.0)
    write(folder, SUPERVISOR, scripts["supervisor"])
    if IDLE_SECONDS in os.environ:
        run_warm(keeper, scripts["setup"], snapshot, float(os.environ[IDLE_SECONDS]))
    else:
        keeper.open_for_commands()
        run_cold(keeper, scripts["setup"], snapshot, began)
    keeper.run()
    keeper.stay()


def run_cold(keeper: LogKeeper, setup: str, snapshot: str, began: float) -> None:
    """Start the commands of the order that this container's environment holds."""
    order = read_order(os.environ)
    use_order(keeper, order, setup, began)
    if not order["snapshot"]:
        snapshot = ""
    if order["change_owner"]:
        # If an errand completes the workspace, the snapshot is taken later in any case.
        late = not order["start"]
        left = hand_over(keeper, order["workspace"], "" if late else snapshot)
        snapshot = snapshot if late else left

    def start() -> None:
        start_commands(order["workspace"], snapshot, keeper.folder + "/" + GO)

    if order["gate"]:
        if snapshot and order["start"]:
            take_snapshot(order["workspace"], snapshot)
            snapshot = ""
        keeper.hold_commands(StartGate(order, keeper.log_folder, time.monotonic()), start)
    elif order["start"]:
        start()


def run_warm(keeper: LogKeeper, setup: str, snapshot: str, seconds: float) -> None:
    """Wait for an order, and start its commands. If no order comes, end the pod."""

    def accept(order: Order) -> str:
        keeper.wait_for_user(PRESENT_SECONDS)
        if not keeper.present or keeper.action_has_ended():
            return "container action does not run"
        use_order(keeper, order, setup, time.monotonic())
        if order["snapshot"]:
            take_snapshot(order["workspace"], snapshot)
        return ""

    def begin(order: Order) -> None:
        start_commands(order["workspace"], "", keeper.folder + "/" + GO)

    server = OrderServer(keeper, keeper.log_folder, accept, begin)
    # Container `action` starts when it can see the FIFO, and the agent then takes the pod for ready.
    keeper.open_for_commands()
    if not server.run(seconds):
        keeper.send_word(LEAVE)
        os._exit(0)


def use_order(keeper: LogKeeper, order: Order, setup: str, began: float) -> None:
    """Write the files of an order, and keep the log with the limits of the order."""
    keeper.deadline = began + order["seconds"]
    keeper.limit, keeper.drain, keeper.copy.key = order["log_limit"], order["drain"], order["log_key"]
    write_order(order, keeper.folder, setup)


def hand_over(keeper: LogKeeper, workspace: str, snapshot: str) -> str:
    """Make the user of the commands the owner of the cloned files.

    Return the path SNAPSHOT if the snapshot must still be taken, else "". Most images run as root, and root owns the
    cloned files already. So the snapshot is taken while the kubelet pulls the image. A new owner changes the ctime of
    all files, and the snapshot must be taken again.
    """
    if snapshot:
        take_snapshot(workspace, snapshot)
    user = keeper.wait_for_user(keeper.deadline - time.monotonic())
    changed = user is not None and change_owner(workspace, *user)
    write(keeper.log_folder, USER, f"{user[0]} {user[1]}\n" if user else "")
    return snapshot if changed else ""

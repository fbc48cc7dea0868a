"""Pack the programs of container `helper` into commands that any container with Python 3.9 can run.

The programs are ordinary modules, so that they are typed, linted and tested: `helper`, which is PID 1, and the errands
`collect_files`, `send_objects`, `receive_tree`, `receive_inputs`, `caches`, `read_log` and `deliver_order`, each one
exec. A command carries their source as one argument of `python3 -c`, compressed, without comments and docstrings. So
the version of the image on a node does not have to match the agent's version.
"""

from __future__ import annotations

import ast
import binascii
import inspect
import json
import zlib
from functools import cache
from typing import TYPE_CHECKING

from agent import glob
from agent.cluster.in_pod import (
    deliver_order,
    helper,
    log_keeper,
    order,
    order_server,
    read_log,
    start_gate,
    workspace,
)
from agent.cluster.in_pod.files import (
    cache_archive,
    cache_claim,
    cache_hash,
    caches,
    collect_files,
    errand_lock,
    receive_inputs,
    receive_tree,
)
from agent.cluster.in_pod.objects import downloads, file_records, outgoing, send_objects, store_client

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from agent.cluster.in_pod.order import Order

# The option -I is necessary. Without -I, Python would import a file `zlib.py` of the workspace instead of the module of
# the standard library.
PYTHON = ("python3", "-I", "-S", "-X", "utf8", "-c")
# Path of the workspace's snapshot inside container `helper`, where no command of the user runs.
SNAPSHOT = "/log/snapshot"
# Folder of the log file, on a volume of container `helper` alone.
LOG_FOLDER = "/log"
# Folder of the volume of caches, which only container `helper` mounts.
CLAIM_FOLDER = "/caches"
# The FIFO by which an errand sends a word to the helper's gate.
GATE = f"{LOG_FOLDER}/{start_gate.GATE}"
# Number of characters of one piece of the order. Linux limits a variable to 128 KiB. A character has up to 4 bytes.
PIECE_CHARACTERS = 30_000


@cache
def helper_program(supervisor: str, setup: str) -> tuple[str, ...]:
    """Return the command of PID 1 of container `helper`, without the arguments that `helper.main` takes.

    `supervisor` and `setup` are the scripts of `agent.cluster.supervisor`, which the helper writes into the order.
    """
    scripts = {"supervisor": supervisor, "setup": setup}
    return (*PYTHON, one_liner(workspace, order, start_gate, log_keeper, order_server, helper, texts=scripts))


@cache
def collect_files_program() -> tuple[str, ...]:
    """Return the command that streams files out, without the arguments that `collect_files.main` takes."""
    return (*PYTHON, one_liner(workspace, glob, collect_files))


@cache
def send_objects_program() -> tuple[str, ...]:
    """Return the command that puts files into an object store, without the arguments that `send_objects.main` takes."""
    return (*PYTHON, one_liner(workspace, glob, collect_files, store_client, file_records, outgoing, send_objects))


@cache
def receive_tree_program() -> tuple[str, ...]:
    """Return the command that fills the workspace, without the arguments that `receive_tree.main` takes."""
    return (*PYTHON, one_liner(workspace, receive_tree))


@cache
def receive_inputs_program() -> tuple[str, ...]:
    """Return the command that writes inputs, without the arguments that `receive_inputs.main` takes."""
    return (*PYTHON, one_liner(workspace, store_client, downloads, errand_lock, file_records, receive_inputs))


@cache
def caches_program() -> tuple[str, ...]:
    """Return the command that restores or saves caches, without the arguments that `caches.main` takes."""
    objects = (store_client, downloads, errand_lock, collect_files, file_records, outgoing, send_objects)
    return (*PYTHON, one_liner(workspace, glob, *objects, cache_hash, cache_archive, cache_claim, caches))


@cache
def read_log_program() -> tuple[str, ...]:
    """Return the command that sends bytes of the log file, without the arguments that `read_log.main` takes."""
    return (*PYTHON, one_liner(order, read_log))


@cache
def gate_program() -> tuple[str, ...]:
    """Return the command that sends a word to the gate, without the arguments that `start_gate.main` takes."""
    return (*PYTHON, one_liner(workspace, start_gate))


def release_command() -> list[str]:
    """Return the command that starts the commands if they wait for the agent only."""
    return [*gate_program(), GATE, "release"]


@cache
def deliver_order_command() -> tuple[str, ...]:
    """Return the command that carries messages between the agent and the helper of a warm pod."""
    return (*PYTHON, one_liner(order, deliver_order), LOG_FOLDER)


def helper_command(folder: str, *, supervisor: str, setup: str) -> list[str]:
    """Return the whole command of container `helper`. `folder` is the order's folder."""
    return [*helper_program(supervisor, setup), folder, LOG_FOLDER, SNAPSHOT]


def log_command(offset: int, *, follow: bool) -> list[str]:
    """Return the command that sends the log file from `offset` to its present end, or to the end of the log."""
    return [*read_log_program(), LOG_FOLDER, str(offset), "follow" if follow else "once"]


def order_variables(asked: Order) -> dict[str, str]:
    """Return the environment variables that carry an order to container `helper`."""
    text = json.dumps(asked, ensure_ascii=False, separators=(",", ":"))
    starts = range(0, len(text), PIECE_CHARACTERS)
    return {f"{order.PIECE}{number}": text[at : at + PIECE_CHARACTERS] for number, at in enumerate(starts)}


def one_liner(*modules: ModuleType, texts: Mapping[str, str] | None = None) -> str:
    """Return one line of Python that runs `main` of the last module. All modules share one global namespace of Python.

    `main` gets the arguments of the process, and `texts` if they are given.
    """
    body: list[ast.stmt] = []
    for module in modules:
        body += [node for node in ast.parse(inspect.getsource(module)).body if not is_internal_import(node)]
    program = RuntimeCode().visit(ast.Module(body, type_ignores=[]))
    more = "" if texts is None else f", {dict(texts)!r}"
    text = f"from __future__ import annotations\n{ast.unparse(program)}\nimport sys\nmain(sys.argv[1:]{more})\n"
    encoded = binascii.b2a_base64(zlib.compress(text.encode(), 9), newline=False).decode()
    return f"import zlib,binascii;exec(zlib.decompress(binascii.a2b_base64('{encoded}')))"


def is_internal_import(node: ast.stmt) -> bool:
    """Whether a statement imports from another packed module, or from `__future__`, which must come first."""
    return isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("agent", "__future__")


class RuntimeCode(ast.NodeTransformer):
    """Removes docstrings and type-only imports from a program. `one_liner` uses one instance per program."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        """Replace a docstring by `pass`."""
        return ast.Pass() if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """Remove an `if TYPE_CHECKING` block."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)

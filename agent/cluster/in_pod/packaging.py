"""Pack the programs of container `helper` into commands that any container with Python 3.9 can run.

The programs (`workspace`, `glob`, `collect_files`, `receive_tree`) are ordinary modules, so that they are typed, linted
and tested. A command carries their source as one argument of `python3 -c`, compressed, without comments and docstrings.
So the version of the image on a node does not have to match the agent's version.
"""

from __future__ import annotations

import ast
import binascii
import inspect
import zlib
from functools import cache
from typing import TYPE_CHECKING

from agent.cluster.in_pod import collect_files, glob, receive_tree, workspace

if TYPE_CHECKING:
    from types import ModuleType

# The option -I is necessary. Without -I, Python would import a file `zlib.py` of the workspace instead of the module of
# the standard library.
PYTHON = ("python3", "-I", "-S", "-X", "utf8", "-c")
# Path of the workspace's snapshot inside container `helper`, where no command of the user runs.
SNAPSHOT = "/tmp/sealci-snapshot"  # noqa: S108 - a path of the container, not of this machine


@cache
def workspace_program() -> tuple[str, ...]:
    """Return the command of PID 1 of container `helper`, without the arguments that `workspace.main` takes."""
    return (*PYTHON, one_liner(workspace))


@cache
def collect_files_program() -> tuple[str, ...]:
    """Return the command that streams files out, without the arguments that `collect_files.main` takes."""
    return (*PYTHON, one_liner(workspace, glob, collect_files))


@cache
def receive_tree_program() -> tuple[str, ...]:
    """Return the command that fills the workspace, without the arguments that `receive_tree.main` takes."""
    return (*PYTHON, one_liner(workspace, receive_tree))


def workspace_command(*, workspace: str, ready_path: str, seconds: float) -> list[str]:
    """Return the whole command of container `helper`.

    The program takes a snapshot of the workspace, creates `ready_path`, and exits on TERM or after `seconds`. If
    `ready_path` is "", `receive_tree` takes the snapshot and creates the file later.
    """
    return [*workspace_program(), workspace, SNAPSHOT, ready_path, f"{seconds:.0f}"]


def log_command(offset: int, *, follow: bool) -> list[str]:
    """Return the command that reads the log's file from byte `offset` on, to its end or to its present end."""
    return [*PYTHON, "", "log", str(offset), "follow" if follow else "once"]


def one_liner(*modules: ModuleType) -> str:
    """Return one line of Python that runs `main` of the last module. All modules share one namespace."""
    body: list[ast.stmt] = []
    for module in modules:
        body += [node for node in ast.parse(inspect.getsource(module)).body if not is_internal_import(node)]
    program = RuntimeCode().visit(ast.Module(body, type_ignores=[]))
    text = "from __future__ import annotations\n" + ast.unparse(program) + "\nimport sys\nmain(sys.argv[1:])\n"
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

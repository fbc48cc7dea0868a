"""Packs programs of ours into a command that any container with Python can run.

The programs (`workspace`, `globs`, `collector`, `filler`) stand here as ordinary modules, so that they are typed,
linted and tested; what travels is their text without comments and docstrings, compressed, as one argument of
`python3 -c`. `-I` matters: without it a file `zlib.py` in the workspace would be run in place of the library.
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


PYTHON = ("python3", "-I", "-S", "-X", "utf8", "-c")


@cache
def workspace_program() -> tuple[str, ...]:
    """Return the command of PID 1 of container `files`; `workspace.main` says what its arguments are."""
    return (*PYTHON, one_liner(workspace))


@cache
def collect_files_program() -> tuple[str, ...]:
    """Return the command that streams files out; `collector.main` says what its arguments are."""
    return (*PYTHON, one_liner(workspace, glob, collect_files))


@cache
def receive_tree_program() -> tuple[str, ...]:
    """Return the command that fills the workspace; `filler.main` says what its arguments are."""
    return (*PYTHON, one_liner(workspace, receive_tree))


def one_liner(*modules: ModuleType) -> str:
    """Return one line of Python that runs `main` of the last of MODULES, all sharing one namespace."""
    body: list[ast.stmt] = []
    for module in modules:
        body += [node for node in ast.parse(inspect.getsource(module)).body if not is_link(node)]
    program = Bare().visit(ast.Module(body, type_ignores=[]))
    text = "from __future__ import annotations\n" + ast.unparse(program) + "\nimport sys\nmain(sys.argv[1:])\n"
    encoded = binascii.b2a_base64(zlib.compress(text.encode(), 9), newline=False).decode()
    return f"import zlib,binascii;exec(zlib.decompress(binascii.a2b_base64('{encoded}')))"


def is_link(node: ast.stmt) -> bool:
    """Say if NODE imports what shares the namespace anyhow, or must stand first."""
    return isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("agent", "__future__")


class Bare(ast.NodeTransformer):
    """Takes away docstrings, and the imports that only types need."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        """Drop a docstring."""
        return ast.Pass() if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """Drop what is there for the type checker."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


SNAPSHOT = "/tmp/sealci-snapshot"  # noqa: S108 - in the container `files`, where no command of the user runs


def workspace_command(*, workspace: str, ready_path: str, seconds: float) -> list[str]:
    """Return what container `files` runs: note what is there, create `ready_path`, leave on TERM or in time."""
    return [*workspace_program(), workspace, SNAPSHOT, ready_path, f"{seconds:.0f}"]

"""The programs that run in a pod need only the standard library and work with old versions of Python.

All modules of one packed program share one Python namespace, so no two modules may define the same name.
"""

from __future__ import annotations

import ast
import binascii
import importlib
import pkgutil
import sys
import zlib
from types import ModuleType

import pytest

from agent import glob
from agent.cluster import in_pod, packaging
from agent.cluster.in_pod import (
    helper,
    log_keeper,
    order,
    read_log,
    workspace,
)
from agent.cluster.in_pod.files import (
    cache_archive,
    cache_hash,
    caches,
    collect_files,
    errand_lock,
    receive_inputs,
    receive_tree,
)
from agent.cluster.in_pod.objects import downloads, file_records, outgoing, send_objects, store_client
from agent.domain.paths import MAX_PATH_BYTES

MODULES = [each.name for each in pkgutil.walk_packages(in_pod.__path__, in_pod.__name__ + ".")] + [glob.__name__]
# The programs that run in container `helper`, with the modules of each. The modules share one Python namespace.
PACKED = {
    "helper": [workspace, order, log_keeper, helper],
    "collect_files": [workspace, glob, collect_files],
    "receive_tree": [workspace, receive_tree],
    "receive_inputs": [workspace, store_client, downloads, errand_lock, file_records, receive_inputs],
    "caches": [
        *(workspace, glob, store_client, downloads, errand_lock),
        *(collect_files, file_records, outgoing, send_objects, cache_hash, cache_archive, caches),
    ],
    "read_log": [order, read_log],
}
OLDEST_PYTHON = (3, 9)


def source(module: ModuleType) -> str:
    assert module.__file__
    with open(module.__file__, encoding="utf-8") as file:
        return file.read()


def imported_modules(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import cannot be packed"
            names.add(node.module or "")
    return names


def defined_names(tree: ast.Module) -> list[str]:
    """Return the names that the top level of a module defines, without imports."""
    names = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


@pytest.mark.parametrize("name", MODULES)
def test_a_program_imports_the_standard_library_and_its_own_package_only(name: str) -> None:
    imported = imported_modules(ast.parse(source(importlib.import_module(name))))
    own = {each for each in imported if each == in_pod.__name__ or each.startswith(in_pod.__name__ + ".")}
    own |= {"agent", glob.__name__}
    assert {each.partition(".")[0] for each in imported - own} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", sorted({m.__name__ for modules in PACKED.values() for m in modules}))
def test_a_packed_module_keeps_to_the_grammar_of_the_oldest_python(module: str) -> None:
    ast.parse(source(importlib.import_module(module)), feature_version=OLDEST_PYTHON)


@pytest.mark.parametrize("modules", PACKED.values(), ids=PACKED)
def test_modules_of_one_command_define_different_names(modules: list[ModuleType]) -> None:
    defined = [name for module in modules for name in defined_names(ast.parse(source(module)))]
    # Several modules may define `main` and `TYPE_CHECKING`. The `main` of the last module is the program's entry point.
    # TYPE_CHECKING has the same value in all modules.
    repeated = {name for name in defined if defined.count(name) > 1} - {"main", "TYPE_CHECKING"}
    assert repeated == set()


def test_a_command_has_no_docstrings_and_no_comments() -> None:
    encoded = packaging.one_liner(workspace, glob, collect_files).split("'")[1]
    text = zlib.decompress(binascii.a2b_base64(encoded)).decode()
    assert '"""' not in text
    assert "\n    #" not in text
    assert "agent.cluster" not in text


def test_the_collector_and_the_agent_accept_paths_of_the_same_length() -> None:
    assert workspace.MAX_NAME == MAX_PATH_BYTES

"""The generated code is what the contract says, and the regenerated one would be the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIRE = Path("agent/scheduler/wire")
GENERATED = ("agent_pb2.py", "agent_pb2.pyi", "agent_pb2_grpc.py", "agent_pb2_grpc.pyi")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wire")
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{WIRE}=proto/sealci/agent/v1", *outputs, WIRE / "agent.proto"],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )
    return folder / WIRE


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_committed_is_what_would_be_generated(fresh: Path, name: str) -> None:
    assert (ROOT / WIRE / name).read_text() == (fresh / name).read_text()

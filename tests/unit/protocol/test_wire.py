"""The committed protobuf code equals the code that protoc generates from the files in `proto/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CONTRACTS = {
    "agent": ("proto/sealci/agent/v1", Path("agent/protocol/wire")),
    "local": ("proto/sealci/local/v1", Path("agent/pipeline/wire")),
    "actions": ("proto/sealci/classic", Path("agent/scheduler/classic/wire")),
    "scheduler": ("proto/sealci/classic", Path("agent/scheduler/classic/wire")),
}
ENDINGS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_committed_code_equals_the_generated_code(name: str, tmp_path: Path) -> None:
    source, wire = CONTRACTS[name]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{wire}={source}", *outputs, wire / f"{name}.proto"],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )
    for ending in ENDINGS:
        assert (ROOT / wire / (name + ending)).read_text() == (tmp_path / wire / (name + ending)).read_text()

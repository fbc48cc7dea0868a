from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner

from agent.cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path


def test_a_token_for_people_needs_a_token_for_agents(tmp_path: Path) -> None:
    """Without a token for agents, every caller could register as an agent."""
    folder = tmp_path / "state"
    result = CliRunner().invoke(
        cli, ["scheduler", "--folder", str(folder), "--submit-token-file", str(tmp_path / "token")]
    )
    assert result.exit_code == 2
    assert "--submit-token-file needs --token-file" in result.output
    assert not folder.exists()

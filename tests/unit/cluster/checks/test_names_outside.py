"""The check of `sealci-agent doctor` that pods can look up DNS names outside the cluster.

The tests cover the lookup in the probe pod, and the finding that the doctor derives from the pod's log.
"""

from __future__ import annotations

import socket

import pytest

from agent.cluster.checks import probe_pod
from agent.domain.check_result import Verdict


def ask(monkeypatch: pytest.MonkeyPatch, error: int | None) -> str:
    """Run the lookup of the probe pod. Return the line that it prints.

    `error` is the error number of the failed lookup. If it is None, the lookup succeeds.
    """
    printed: list[str] = []

    def getaddrinfo(name: str, port: int) -> list[str]:
        # The name must exist on no name server. It must be fully qualified, so that the resolver tries no search
        # domain.
        assert (name, port) == ("sealci-agent.invalid.", 443)
        if error is not None:
            raise socket.gaierror(error, "no")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    exec(probe_pod.OUTSIDE_LOOKUP, {"print": lambda *words: printed.append(" ".join(words))})  # noqa: S102 - our own text
    (line,) = printed
    return line


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (socket.EAI_NONAME, Verdict.OK),
        (socket.EAI_NODATA, Verdict.OK),
        (None, Verdict.OK),
        (socket.EAI_AGAIN, Verdict.WARNING),
        (socket.EAI_FAIL, Verdict.WARNING),
    ],
)
def test_only_a_name_server_that_does_not_answer_gives_a_warning(
    error: int | None, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ask(monkeypatch, error)
    finding = probe_pod.check_names_outside(f"uid_map 0 100000 65536\n{line}\n")
    assert (finding.check, finding.verdict) == (probe_pod.OUTSIDE, verdict)
    assert bool(finding.advice) is (verdict is Verdict.WARNING)


def test_a_log_without_the_answer_skips_the_check() -> None:
    assert probe_pod.check_names_outside("uid_map 0 0 1\n").verdict is Verdict.SKIPPED


def test_the_probe_s_other_commands_run_even_if_the_question_fails() -> None:
    (command,) = [each for each in probe_pod.COMMANDS if probe_pod.OUTSIDE_LOOKUP in each]
    assert command.endswith("|| true")
    assert "'" not in probe_pod.OUTSIDE_LOOKUP

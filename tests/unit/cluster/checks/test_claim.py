"""What `sealci-agent doctor` reports about the claim of caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from agent.cluster.checks.claim import check_claim
from agent.domain.check_result import Verdict
from agent.domain.errors import ClusterError
from agent.settings import Settings

if TYPE_CHECKING:
    from agent.cluster.api.client import Client

CACHES = {"store": "claim", "claim": "ci-caches", "sign_key_file": "/key"}


class Claims:
    """A cluster with this answer to the request for a claim."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def request(self, *words: str) -> Any:
        assert words[2] == "/api/v1/namespaces/ci/persistentvolumeclaims/ci-caches"
        if isinstance(self.answer, ClusterError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (["ReadWriteMany"], Verdict.OK, "on every node"),
        (["ReadWriteOnce"], Verdict.WARNING, "second node"),
        (["ReadWriteOncePod"], Verdict.FAILED, "one pod at a time"),
        (["ReadOnlyMany"], Verdict.FAILED, "no pod can write"),
        (ClusterError("no", status=404), Verdict.FAILED, "there is no claim ci-caches in namespace ci"),
        (ClusterError("no", status=403), Verdict.SKIPPED, "no right"),
        (ClusterError("down"), Verdict.FAILED, "down"),
    ],
)
async def test_a_claim_is_judged_by_its_access_modes(answer: Any, verdict: Verdict, text: str) -> None:
    settings = Settings.model_validate({"cluster": {"namespace": "ci"}, "caches": CACHES})
    found = {"spec": {"accessModes": answer}, "status": {"phase": "Bound"}} if isinstance(answer, list) else answer
    finding = await check_claim(cast("Client", Claims(found)), settings)
    assert (finding.verdict, text in finding.detail) == (verdict, True)


async def test_a_claim_without_a_volume_fails() -> None:
    settings = Settings.model_validate({"cluster": {"namespace": "ci"}, "caches": CACHES})
    lost = {"spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Lost"}}
    assert (await check_claim(cast("Client", Claims(lost)), settings)).verdict is Verdict.FAILED

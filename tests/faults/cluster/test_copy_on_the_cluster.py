"""The copy of a file of 100 MiB from a real pod is interrupted. After a retry, the stored file is complete."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.e2e.lab import DEBIAN
from tests.faults.cluster.proxied_agent import proxied_agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.lab import Agent, Lab
    from tests.faults.proxy import Threaded

SIZE = 100 << 20
COMMAND = f"head -c {SIZE} /dev/urandom >built; sha256sum built"


@pytest.fixture(scope="module")
def copying(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Agent, Threaded]]:
    with proxied_agent(namespace, tmp_path_factory.mktemp("copying")) as made:
        yield made


@pytest.mark.timeout(150)
@pytest.mark.parametrize("tenth", [2, 5, 9])
def test_an_interrupted_copy_from_a_real_pod_is_complete_after_a_retry(
    copying: tuple[Lab, Agent, Threaded], tenth: int
) -> None:
    lab, agent, proxy = copying
    before = agent.log.count("copying files broke")
    # The proxy also counts the traffic before the copy, but that traffic is small compared with a tenth of the copy.
    proxy.fault("reset_after", SIZE * tenth // 10)
    report = lab.one(DEBIAN, COMMAND, artifacts={"paths": ["built"]})
    assert report.outcome == ("succeeded", None, 0), report
    with report.files["built"].open("rb") as stored:
        assert hashlib.file_digest(stored, "sha256").hexdigest() == report.text.split()[0]
    broke = agent.log.count("copying files broke") - before
    print(f"cut at {tenth * 10} % of a real copy: complete after {broke + 1} tries")
    assert broke == 1

"""Each fault of each request of the agent follows one rule. TABLE lists the rules and is printed after the tests."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from agent.cluster.api import client
from agent.cluster.api.timings import ApiTimings
from agent.cluster.environment import environment
from agent.cluster.logs.source import Timings
from agent.protocol.wire import agent_pb2 as wire
from tests.fakes.certificates import authority, openssl
from tests.fakes.faults import ANSWERS
from tests.fakes.waiting import LONG
from tests.faults.api_case import VERBS, ApiCase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

TITLE = "the API fails"
QUICK = ApiTimings(retry_pause=0.01, longest_retry_pause=0.1, watch_pause=0.02)
# Rules: what the agent does after a request has met a fault. After every rule but those in FAILURES, the action
# succeeds with its whole log. RETRIED: the agent repeats the request within a time limit. AT_ITS_PACE: the agent
# repeats the request at the usual interval. LISTED: the agent lists the objects again. WAITS: the agent waits and
# reports the cause. SWEPT: the sweep deletes the pod later. WITHOUT: the agent continues without the answer.
RETRIED = "again"
AT_ITS_PACE = "pace"
LISTED = "relist"
WAITS = "waits"
SWEPT = "swept"
WITHOUT = "without"
CLUSTER, CONFIGURATION, FILES = "CLUSTER_UNAVAILABLE", "INVALID_CONFIGURATION", "ARTIFACTS_FAILED"
FAILURES = (CLUSTER, CONFIGURATION, FILES)

# Faults that can end by themselves. After most of these faults the agent repeats the request.
PASSING = ("refused", "TLS", "401", "429", "500", "503", "504", "applied", "half", "slow")
READS = ("403 right", "404")
WRITES = (*READS, "409")
CREATES = (*WRITES, "403 quota", "422")
STREAM = ("410 event", "silent", "doubled", "reordered", "missing")


def rules(passing: str) -> dict[str, str]:
    """Return a dict in which each fault of PASSING has the rule `passing`: what the agent must do after the fault."""
    return dict.fromkeys(PASSING, passing)


WATCH = dict.fromkeys((*READS, "410", *STREAM), LISTED)
TABLE: dict[str, dict[str, str]] = {
    "create pod": rules(RETRIED)
    | {"403 right": CLUSTER, "403 quota": WAITS, "404": CLUSTER, "409": RETRIED, "422": CONFIGURATION},
    "get pod": rules(RETRIED) | {"403 right": CLUSTER, "404": RETRIED},
    "delete pod": rules(RETRIED) | {"403 right": RETRIED, "404": SWEPT, "409": RETRIED},
    "patch pod": rules(AT_ITS_PACE) | dict.fromkeys((*WRITES, "422"), AT_ITS_PACE),
    "list pods": rules(RETRIED) | dict.fromkeys((*READS, "410"), RETRIED),
    "watch pods": rules(LISTED) | WATCH,
    "log": rules(RETRIED) | dict.fromkeys(READS, RETRIED),
    "exec": rules(RETRIED) | {"slow": FILES, "403 right": FILES, "404": FILES},
    "create secret": rules(RETRIED)
    | {"403 right": CLUSTER, "403 quota": WAITS, "404": CLUSTER, "409": RETRIED, "422": CONFIGURATION},
    "delete secret": rules(RETRIED) | {"403 right": CLUSTER, "404": RETRIED, "409": RETRIED},
    "create lease": rules(AT_ITS_PACE) | dict.fromkeys(CREATES, AT_ITS_PACE),
    "patch lease": rules(AT_ITS_PACE) | dict.fromkeys((*WRITES, "422"), AT_ITS_PACE),
    "list leases": rules(RETRIED) | dict.fromkeys((*READS, "410"), RETRIED),
    "watch leases": rules(LISTED) | WATCH,
    "list events": rules(RETRIED) | {"403 right": WITHOUT, "404": WITHOUT},
    "version": rules(RETRIED) | {"403 right": WITHOUT, "404": WITHOUT},
}
CASES = [(verb, fault) for verb, cells in TABLE.items() for fault in cells]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (client, "DEFAULT_TIMINGS", QUICK),
        (environment, "Timings", partial(Timings, read=0.5)),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext, Path]:
    folder = tmp_path_factory.mktemp("certificates")
    own, other = authority(folder, "own"), authority(folder, "other")
    request, extensions, served = folder / "csr", folder / "ext", folder / "served.crt"
    openssl("req", "-new", "-key", own.key, "-subj", "/CN=api", "-out", request)
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        "x509",
        "-req",
        "-in",
        request,
        "-CA",
        own.cert,
        "-CAkey",
        own.key,
        "-CAcreateserial",
        "-days",
        "1",
        "-extfile",
        extensions,
        "-out",
        served,
    )
    contexts = []
    for cert, key in ((served, own.key), (other.cert, other.key)):
        contexts.append(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        contexts[-1].load_cert_chain(cert, key)
    return contexts[0], contexts[1], own.cert


@pytest.mark.parametrize(("verb", "fault"), CASES, ids=[f"{verb}-{fault}".replace(" ", "_") for verb, fault in CASES])
async def test_each_fault_of_each_request_follows_its_rule(
    verb: str,
    fault: str,
    tmp_path: Path,
    certificates: tuple[ssl.SSLContext, ssl.SSLContext, Path],
    monkeypatch: pytest.MonkeyPatch,
    in_table: Callable[[str, str, Mapping[str, str]], None],
) -> None:
    rule = TABLE[verb][fault]
    in_table(TITLE, verb, {fault: "FAILED"})
    case = ApiCase(tmp_path, verb)
    if fault == "TLS":
        case.trust(*certificates)
    if VERBS[verb].verb == "watch":
        impatient(fault, monkeypatch)
    twice = rule == RETRIED and fault not in ("429", "TLS", "refused", "applied")
    times = 50 if (verb, fault) == ("exec", "slow") else 2 if twice else 1
    if (verb, fault) == ("exec", "slow"):
        case.more["artifacts"]["timeout"] = 1.0
    case.faults.put(fault, VERBS[verb].verb, VERBS[verb].part, times)
    async with case.living() as app:
        await case.begin_action(app)
        outcome = await case.end_action(app)
        case.check(app, outcome)
        check_rule(case, rule, outcome)
        if fault == "429":
            async with asyncio.timeout(30):
                await case.api.until("the request is sent a second time", lambda: len(case.tries()) > 1, LONG)
        if fault in ANSWERS:
            await case.until_counted(app, f"{ANSWERS[fault][0] // 100}xx")
        elif fault in ("refused", "TLS"):
            assert case.felt(), "a try is not in the metrics"
    if fault == "429":
        asked = case.tries()
        honoured = 0.3 if rule == AT_ITS_PACE and "lease" in verb else 0.95
        assert max(late - early for early, late in pairwise(asked)) >= honoured, (
            f"Retry-After was not honoured: {asked}"
        )
    assert case.faults.hits >= (fault not in ("doubled", "reordered", "missing"))
    in_table(TITLE, verb, {fault: rule.removesuffix("_UNAVAILABLE").removeprefix("INVALID_").removesuffix("_FAILED")})


def impatient(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the times after which the agent ends a silent watch, if `fault` makes watches silent."""
    if fault in ("silent", "slow", "applied"):
        monkeypatch.setattr(client, "DEFAULT_TIMINGS", replace(QUICK, watch_silence=0.2, watch_connect=0.2))
    if fault == "missing":
        quick = replace(QUICK, watch_relist=0.5, watch_duration=(1, 1), watch_steady=0.5)
        monkeypatch.setattr(client, "DEFAULT_TIMINGS", quick)


def check_rule(case: ApiCase, rule: str, outcome: wire.Outcome) -> None:
    """Check that the outcome and the agent's requests are as the rule demands.

    A rule is what the agent must do after the fault of this case.
    """
    words = case.words
    expected = rule if rule in FAILURES else "IMAGE_PULL_FAILED" if case.verb.scene == "a bad image" else ""
    reason = wire.Reason.Name(outcome.reason) if outcome.result == wire.FAILED else ""
    assert reason == expected, words
    if rule in FAILURES:
        assert outcome.message, "a failure without a sentence"
    if rule == WAITS:
        assert "exceeded quota: team" in words, "no event names why the action waits"
    if case.verb.scene == "a bad image":
        assert ("InspectFailed" in words) == (rule == RETRIED)
    if case.verb.resource == "version":
        made = case.api.requests_for("create", "/pods")[0].body or {}
        assert made["spec"].get("hostUsers") is (False if rule == RETRIED else None), "hostUsers was dropped"
    if rule in (RETRIED, AT_ITS_PACE, LISTED):
        assert len(case.tries()) >= case.faults.hits

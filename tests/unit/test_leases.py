"""Who is alive: judged on the observer's own clock, only while it could see; and who may claim what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster import leases as module
from agent.cluster import names
from agent.cluster.adoption import Adoption
from agent.cluster.leases import Leases
from agent.errors import ClusterError
from agent.metrics import Metrics
from agent.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

Object = dict[str, Any]
ME, OTHER = "uid-a.1", "uid-b.1"


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Api:
    """Answers requests by what the test says; keeps them."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.asked: list[tuple[str, str, Object | None]] = []
        self.errors: list[ClusterError] = []

    async def request(self, verb: str, resource: str, path: str, *, body: Object | None = None, **_: Any) -> Object:
        self.asked.append((verb, path, body))
        if self.errors:
            raise self.errors.pop(0)
        return {"metadata": {"name": path.rsplit("/", 1)[-1]}}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Pool:
    """One observer and the records that it sees."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.api = Api()
        self.leases = Leases(self.api, Settings(), ME, None)  # type: ignore[arg-type]  # an API by script
        self.version = 0
        self.leases.synced.set()

    def see(self, agent: str, kind: str = "MODIFIED") -> None:
        """Let the watch tell a renewal."""
        self.version += 1
        name = self.leases.name if agent == ME else f"lease-of-{agent}"
        metadata = {"name": name, "uid": name, "resourceVersion": str(self.version)}
        self.leases.take(kind, {"metadata": metadata, "spec": {"holderIdentity": agent, "leaseDurationSeconds": 15}})

    def renew(self) -> None:
        """Let the own renewal succeed, and be seen."""
        self.leases.renewed_now()
        self.see(ME)

    def pass_seconds(self, seconds: float, *others: str, renewing: bool = True) -> None:
        """Let time pass in steps of a renewal."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 5.0)
            if renewing:
                self.renew()
            for other in others:
                self.see(other)


@pytest.fixture
def pool(clock: Clock) -> Pool:
    pool = Pool(clock)
    pool.renew()
    pool.see(OTHER)
    return pool


def test_who_renews_is_alive_however_long(pool: Pool) -> None:
    pool.pass_seconds(600, OTHER)
    assert not pool.leases.departed(OTHER)


def test_who_does_not_renew_is_dead_after_the_duration(pool: Pool) -> None:
    pool.pass_seconds(15)
    assert not pool.leases.departed(OTHER)
    pool.pass_seconds(5)
    assert pool.leases.departed(OTHER)


def test_nobody_is_dead_to_an_observer_that_cannot_renew_itself(pool: Pool) -> None:
    pool.pass_seconds(60, renewing=False)
    assert not pool.leases.departed(OTHER)


def test_nobody_is_dead_after_an_outage_before_it_had_time_to_renew(pool: Pool) -> None:
    pool.pass_seconds(60, renewing=False)
    pool.renew()
    assert not pool.leases.departed(OTHER)
    pool.pass_seconds(10)
    assert not pool.leases.departed(OTHER)
    pool.see(OTHER)
    pool.pass_seconds(15)
    assert not pool.leases.departed(OTHER)


def test_a_short_outage_counts_too(pool: Pool) -> None:
    pool.pass_seconds(12, renewing=False)
    pool.clock.now += 4
    pool.renew()
    assert not pool.leases.departed(OTHER)


def test_who_was_dead_before_the_outage_is_dead_a_duration_after_it(pool: Pool) -> None:
    pool.pass_seconds(60, renewing=False)
    pool.renew()
    pool.pass_seconds(20)
    assert pool.leases.departed(OTHER)


def test_a_watch_that_stands_still_makes_nobody_dead(pool: Pool) -> None:
    for _ in range(6):
        pool.clock.now += 5
        pool.leases.renewed_now()  # it succeeds, but the watch does not tell
    assert not pool.leases.departed(OTHER)


def test_the_clocks_of_others_do_not_matter(pool: Pool) -> None:
    for lease in pool.leases.objects.values():
        lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    assert not pool.leases.departed(OTHER)


def test_who_gives_its_lease_back_has_left_at_once(pool: Pool) -> None:
    pool.see(OTHER, "DELETED")
    assert pool.leases.departed(OTHER)


def test_a_lease_that_was_never_seen_may_still_be_on_its_way(pool: Pool) -> None:
    assert not pool.leases.departed("uid-c.1")
    pool.pass_seconds(10)
    assert not pool.leases.departed("uid-c.1")
    pool.pass_seconds(10)
    assert pool.leases.departed("uid-c.1")


def test_an_earlier_start_of_this_pod_is_gone(pool: Pool) -> None:
    assert pool.leases.departed("uid-a.0")
    assert not pool.leases.departed(ME)


async def test_the_own_lease_is_made_where_it_is_missing_and_given_back(pool: Pool) -> None:
    pool.api.errors = [ClusterError("no such lease", status=404)]
    await pool.leases.renew()
    assert [verb for verb, *_ in pool.api.asked] == ["patch", "create"]
    _, _, body = pool.api.asked[-1]
    assert body is not None
    assert body["spec"]["holderIdentity"] == ME
    assert body["metadata"]["labels"][names.POOL] == "default"
    pool.api.errors = [ClusterError("no such lease", status=404)]
    await pool.leases.release()
    assert pool.api.asked[-1][0] == "delete"


# ---- claims


class Held:
    """What adoption needs of `Pods`."""

    def __init__(self, api: Api, pods: dict[str, Object]) -> None:
        self.client = api
        self.metrics = api.metrics
        self.agent_id = ME
        self.held: dict[str, object] = {}
        self.watch = self
        self.pods = pods
        self.path = "/pods"
        self.synced = asyncio.Event()
        self.unreadable = False

    def adopted(self, pod: Object) -> str:
        if self.unreadable:
            raise ValueError("tells no session")
        return str(pod["metadata"]["name"])


def orphan(agent: str = OTHER) -> Object:
    labels = {names.AGENT: agent, names.CLAIM: "3"}
    return {"metadata": {"name": "p", "uid": "u", "resourceVersion": "7", "labels": labels}}


Adopting = tuple[Adoption, Held, list[str]]


@pytest.fixture
def adopting(pool: Pool) -> Callable[..., Adopting]:
    def make(pod: Object, *, may: bool = True) -> Adopting:
        taken: list[str] = []
        held = Held(pool.api, {"p": pod})
        adoption = Adoption(held, pool.leases, taken.append, open_for=lambda: may)  # type: ignore[arg-type]
        return adoption, held, taken

    return make


async def test_a_claim_names_the_version_it_saw_and_raises_the_number(
    pool: Pool, adopting: Callable[..., Adopting]
) -> None:
    adoption, _, taken = adopting(orphan())
    await adoption.once()
    assert not taken
    pool.pass_seconds(20)
    await adoption.once()
    assert taken == ["p"]
    verb, path, body = pool.api.asked[-1]
    assert (verb, path) == ("patch", "/pods/p")
    assert body == {"metadata": {"resourceVersion": "7", "labels": {names.AGENT: ME, names.CLAIM: "4"}}}


async def test_who_loses_the_race_takes_nothing(pool: Pool, adopting: Callable[..., Adopting]) -> None:
    adoption, _, taken = adopting(orphan("uid-a.0"))
    pool.api.errors = [ClusterError("the object has been modified", status=409)]
    await adoption.once()
    assert not taken


async def test_who_leaves_or_is_full_claims_nothing(pool: Pool, adopting: Callable[..., Adopting]) -> None:
    adoption, _, taken = adopting(orphan("uid-a.0"), may=False)
    await adoption.once()
    assert not taken
    assert not pool.api.asked


async def test_what_is_held_or_lives_is_not_claimed(pool: Pool, adopting: Callable[..., Adopting]) -> None:
    adoption, held, taken = adopting(orphan("uid-a.0"))
    held.held["p"] = object()
    await adoption.once()
    assert not taken
    adoption, _, taken = adopting(orphan(OTHER))
    await adoption.once()
    assert not taken


async def test_a_pod_that_tells_nothing_does_not_stop_the_others(pool: Pool, adopting: Callable[..., Adopting]) -> None:
    adoption, held, taken = adopting(orphan("uid-a.0"))
    held.unreadable = True
    await adoption.once()
    assert not taken

"""Who is alive: judged on the observer's own clock, only while it could see."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.cluster.api.timings import ApiTimings
from agent.cluster.ownership import leases as module
from agent.cluster.ownership.leases import Leases
from agent.cluster.pod import labels
from agent.domain.errors import ClusterError
from agent.domain.json import Object
from agent.settings import Settings
from agent.telemetry.metrics import Metrics

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
        self.timings = ApiTimings()
        self.asked: list[tuple[str, str, Object | None]] = []
        self.errors: list[ClusterError] = []
        self.reachable = True

    def mark_unreachable(self) -> None:
        self.reachable = False

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
        self.leases = Leases(self.api, Settings(), ME)  # type: ignore[arg-type]  # an API by script
        self.version = 0
        self.leases.synced.set()

    def see(self, agent: str, kind: str = "MODIFIED") -> None:
        """Let the watch tell a renewal."""
        self.version += 1
        name = self.leases.name if agent == ME else f"lease-of-{agent}"
        metadata = {"name": name, "uid": name, "resourceVersion": str(self.version)}
        self.leases.apply_event(
            kind, {"metadata": metadata, "spec": {"holderIdentity": agent, "leaseDurationSeconds": 15}}
        )

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
    assert body["metadata"]["labels"][labels.POOL] == "default"
    pool.api.errors = [ClusterError("no such lease", status=404)]
    await pool.leases.release()
    assert pool.api.asked[-1][0] == "delete"


# ---- what must not be taken for a death


def test_a_frozen_observer_reads_what_came_meanwhile_before_it_judges(pool: Pool, clock: Clock) -> None:
    pool.pass_seconds(5, OTHER)
    clock.now += 4.9
    pool.renew()
    clock.now += 10.2  # stopped right after its own renewal: what others wrote meanwhile is unread
    assert not pool.leases.departed(OTHER)
    pool.renew()
    assert not pool.leases.departed(OTHER)


class Replicas:
    """Agents that see each other through one API; `up` is whether it answers."""

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock = clock
        self.up = True
        self.version = 0
        self.agents = [f"uid-{number}.1" for number in range(count)]
        self.observers = {agent: Leases(Api(), Settings(), agent) for agent in self.agents}  # type: ignore[arg-type]

    def renew(self, agent: str, **spec: Any) -> None:
        """Let one agent write its Lease, and all see it."""
        if not self.up:
            return
        self.version += 1
        own = self.observers[agent]
        own.renewed_now()
        metadata = {"name": own.name, "uid": own.name, "resourceVersion": str(self.version)}
        for observer in self.observers.values():
            observer.apply_event(
                "MODIFIED",
                {"metadata": metadata, "spec": {"holderIdentity": agent, "leaseDurationSeconds": 15, **spec}},
            )

    def live(self, seconds: float, **spec: Any) -> set[tuple[str, str]]:
        """Let all renew every 5 s, each at a moment of its own; return who was ever taken for dead, and by whom."""
        found: set[tuple[str, str]] = set()
        for second in range(int(seconds)):
            self.clock.now += 1.0
            for number, agent in enumerate(self.agents):
                if (second + 2 * number) % 5 == 0:
                    self.renew(agent, **spec)
            found |= {(one, two) for one, each in self.observers.items() for two in self.agents if each.departed(two)}
        return found


def test_an_outage_of_the_api_of_a_minute_makes_nobody_adopt(clock: Clock) -> None:
    replicas = Replicas(clock, 3)
    assert replicas.live(30) == set()
    for outage in (7, 14, 16, 60, 600):
        replicas.up = False
        assert replicas.live(outage) == set()
        replicas.up = True
        assert replicas.live(30) == set()


def test_clocks_an_hour_apart_make_nobody_adopt(clock: Clock) -> None:
    replicas = Replicas(clock, 3)
    for told in ("2026-11-24T07:00:00.000000Z", "2026-11-24T09:00:00.000000Z"):
        assert replicas.live(60, renewTime=told) == set()


def test_one_of_three_that_dies_is_dead_to_both_others_and_nobody_else_is(clock: Clock) -> None:
    replicas = Replicas(clock, 3)
    replicas.live(30)
    dead = replicas.agents.pop()
    assert replicas.live(12) == set()
    replicas.live(20)
    for agent in replicas.agents:
        observer = replicas.observers[agent]
        assert [each for each in (*replicas.agents, dead) if observer.departed(each)] == [dead]


def test_only_a_deletion_wakes_the_adoption_at_once(pool: Pool) -> None:
    woken: list[bool] = []
    pool.leases.on_change = lambda: woken.append(True)
    pool.see(OTHER)
    assert not woken
    pool.see(OTHER, "DELETED")
    assert woken


# ---- the own Lease, and those that nobody asks for


async def test_the_lease_of_an_agent_that_died_long_ago_is_removed_as_it_was_seen(pool: Pool) -> None:
    pool.pass_seconds(500)
    await pool.leases.tidy()
    assert pool.api.asked == []
    pool.pass_seconds(150)
    record = pool.leases.objects[f"lease-of-{OTHER}"]["metadata"]["resourceVersion"]
    pool.api.errors = [ClusterError("it was renewed meanwhile", status=409)]
    await pool.leases.tidy()
    ((verb, path, body),) = pool.api.asked
    assert (verb, path.rsplit("/", 1)[-1]) == ("delete", f"lease-of-{OTHER}")
    assert body is not None
    assert body["preconditions"] == {"uid": f"lease-of-{OTHER}", "resourceVersion": record}
    await pool.leases.tidy()
    assert pool.api.metrics.registry.get_sample_value("sealci_agent_swept_total", {"kind": "lease"}) == 1


async def test_a_renewal_into_a_black_hole_does_not_hold_back_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate({"cluster": {"lease_duration": "2s", "lease_renew": "0.5s"}})
    leases = Leases(Api(), settings, ME)  # type: ignore[arg-type]  # never asked
    tries: asyncio.Queue[None] = asyncio.Queue()

    async def lost() -> None:
        tries.put_nowait(None)
        await asyncio.Event().wait()

    monkeypatch.setattr(leases, "renew", lost)
    task = asyncio.create_task(leases.keep(), name="keep")
    async with asyncio.timeout(10):
        for _ in range(3):
            await tries.get()
    assert not leases.held.is_set()
    task.cancel()
    await asyncio.wait({task})


def test_an_agent_is_refused_when_that_happens_twice_in_a_row(pool: Pool) -> None:
    leases = pool.leases
    for errors, refused in (
        ([401], False),
        ([401, 403], True),
        ([403, 500, 403], False),
        ([403, 0, 401], False),
    ):
        leases.renewed_now()
        for status in errors:
            leases.note_refusal(ClusterError("no", status=status) if status else TimeoutError())
        assert leases.refused.is_set() is refused, errors
    leases.note_refusal(ClusterError("no", status=401))
    assert leases.refused.is_set()
    leases.renewed_now()
    assert not leases.refused.is_set()

"""How an agent decides from the Leases of other agents which agents are alive.

The agent measures time on its own clock. It regards no agent as dead because of a time in which it could not read
renewals.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.cluster.api.timings import ApiTimings
from agent.cluster.capabilities import ClusterFacts
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

    def __call__(self) -> float:
        return self.now


class Api:
    """A stand-in for the API client. It records requests, and answers them as the test has set."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.timings = ApiTimings()
        self.asked: list[tuple[str, str, Object | None]] = []
        self.errors: list[ClusterError] = []
        self.reachable = True

    def now(self) -> datetime:
        return datetime(2026, 1, 1, 12, tzinfo=UTC)

    def mark_unreachable(self) -> None:
        self.reachable = False

    async def request(self, verb: str, resource: str, path: str, *, body: Object | None = None, **_: Any) -> Object:
        self.asked.append((verb, path, body))
        if self.errors:
            raise self.errors.pop(0)
        return {"metadata": {"name": path.rsplit("/", 1)[-1]}}


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Pool:
    """One agent that observes the other agents of its pool, and the Leases that its watch has reported."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.api = Api()
        self.leases = Leases(self.api, Settings(), ME, ClusterFacts(), clock=clock)  # type: ignore[arg-type]  # a fake client
        self.version = 0
        self.leases.synced.set()

    def see(self, agent: str, kind: str = "MODIFIED") -> None:
        """Let the watch report the Lease of `agent`. `kind` is the type of the watch event."""
        self.version += 1
        name = self.leases.name if agent == ME else f"lease-of-{agent}"
        metadata = {"name": name, "uid": name, "resourceVersion": str(self.version)}
        self.leases.apply_event(
            kind, {"metadata": metadata, "spec": {"holderIdentity": agent, "leaseDurationSeconds": 15}}
        )

    def renew(self) -> None:
        """Let the observing agent renew its own Lease, and let the watch report the renewal."""
        self.leases.record_renewal()
        self.see(ME)

    def pass_seconds(self, seconds: float, *others: str, renewing: bool = True) -> None:
        """Advance the clock in steps of a renewal interval.

        At each step, the agents in `others` renew their Leases, and so does the observing agent if `renewing`.
        """
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


def test_an_agent_that_renews_is_alive(pool: Pool) -> None:
    pool.pass_seconds(600, OTHER)
    assert not pool.leases.is_gone(OTHER)


def test_an_agent_that_does_not_renew_is_dead_after_the_duration(pool: Pool) -> None:
    pool.pass_seconds(15)
    assert not pool.leases.is_gone(OTHER)
    pool.pass_seconds(5)
    assert pool.leases.is_gone(OTHER)


def test_an_observer_that_cannot_renew_its_own_lease_judges_no_agent_dead(pool: Pool) -> None:
    pool.pass_seconds(60, renewing=False)
    assert not pool.leases.is_gone(OTHER)


def test_after_an_outage_every_agent_gets_time_to_renew(pool: Pool) -> None:
    pool.pass_seconds(60, renewing=False)
    pool.renew()
    assert not pool.leases.is_gone(OTHER)
    pool.pass_seconds(10)
    assert not pool.leases.is_gone(OTHER)
    pool.see(OTHER)
    pool.pass_seconds(15)
    assert not pool.leases.is_gone(OTHER)


def test_after_a_short_outage_every_agent_gets_time_to_renew(pool: Pool) -> None:
    pool.pass_seconds(12, renewing=False)
    pool.clock.now += 4
    pool.renew()
    assert not pool.leases.is_gone(OTHER)


def test_an_agent_that_died_before_an_outage_is_dead_a_duration_after_it(pool: Pool) -> None:
    pool.pass_seconds(60, renewing=False)
    pool.renew()
    pool.pass_seconds(20)
    assert pool.leases.is_gone(OTHER)


def test_a_watch_that_stands_still_makes_no_agent_dead(pool: Pool) -> None:
    for _ in range(6):
        pool.clock.now += 5
        pool.leases.record_renewal()  # The renewal succeeds, but the watch does not report it.
    assert not pool.leases.is_gone(OTHER)


def test_the_clocks_of_others_do_not_matter(pool: Pool) -> None:
    for lease in pool.leases.objects.values():
        lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    assert not pool.leases.is_gone(OTHER)


def test_an_agent_that_deletes_its_lease_is_gone_at_once(pool: Pool) -> None:
    pool.see(OTHER, "DELETED")
    assert pool.leases.is_gone(OTHER)


def test_a_lease_that_was_never_seen_may_still_be_on_its_way(pool: Pool) -> None:
    assert not pool.leases.is_gone("uid-c.1")
    pool.pass_seconds(10)
    assert not pool.leases.is_gone("uid-c.1")
    pool.pass_seconds(10)
    assert pool.leases.is_gone("uid-c.1")


def test_an_earlier_start_of_this_pod_is_gone(pool: Pool) -> None:
    assert pool.leases.is_gone("uid-a.0")
    assert not pool.leases.is_gone(ME)


async def test_the_own_lease_is_created_if_missing_and_deleted_at_the_end(pool: Pool) -> None:
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


# ---- living agents that look dead


def test_a_frozen_observer_reads_the_missed_renewals_before_it_judges(pool: Pool, clock: Clock) -> None:
    pool.pass_seconds(5, OTHER)
    clock.now += 4.9
    pool.renew()
    # The observing agent froze right after the renewal of its own Lease. It has not read the later renewals of other
    # agents yet.
    clock.now += 10.2
    assert not pool.leases.is_gone(OTHER)
    pool.renew()
    assert not pool.leases.is_gone(OTHER)


class Replicas:
    """Agents that read each other's Leases from one API server. If `up` is false, the API server does not answer."""

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock = clock
        self.up = True
        self.version = 0
        self.agents = [f"uid-{number}.1" for number in range(count)]
        self.observers = {
            agent: Leases(Api(), Settings(), agent, ClusterFacts(), clock=clock)  # type: ignore[arg-type]  # a fake client
            for agent in self.agents
        }

    def renew(self, agent: str, **spec: Any) -> None:
        """Let one agent renew its Lease, and let all agents see the renewal. `spec` overrides fields of the Lease."""
        if not self.up:
            return
        self.version += 1
        own = self.observers[agent]
        own.record_renewal()
        metadata = {"name": own.name, "uid": own.name, "resourceVersion": str(self.version)}
        for observer in self.observers.values():
            observer.apply_event(
                "MODIFIED",
                {"metadata": metadata, "spec": {"holderIdentity": agent, "leaseDurationSeconds": 15, **spec}},
            )

    def live(self, seconds: float, **spec: Any) -> set[tuple[str, str]]:
        """Let every agent renew its Lease every 5 s for `seconds`. The agents renew at different seconds.

        `spec` overrides fields of the Leases. Return pairs of agents: the first agent took the second agent for dead.
        """
        found: set[tuple[str, str]] = set()
        for second in range(int(seconds)):
            self.clock.now += 1.0
            for number, agent in enumerate(self.agents):
                if (second + 2 * number) % 5 == 0:
                    self.renew(agent, **spec)
            found |= {(one, two) for one, each in self.observers.items() for two in self.agents if each.is_gone(two)}
        return found


def test_an_outage_of_the_api_server_makes_no_agent_dead(clock: Clock) -> None:
    replicas = Replicas(clock, 3)
    assert replicas.live(30) == set()
    for outage in (7, 14, 16, 60, 600):
        replicas.up = False
        assert replicas.live(outage) == set()
        replicas.up = True
        assert replicas.live(30) == set()


def test_clocks_an_hour_apart_make_no_agent_dead(clock: Clock) -> None:
    replicas = Replicas(clock, 3)
    for renewed in ("2026-11-24T07:00:00.000000Z", "2026-11-24T09:00:00.000000Z"):
        assert replicas.live(60, renewTime=renewed) == set()


def test_one_dead_agent_of_three_is_dead_to_both_others(clock: Clock) -> None:
    replicas = Replicas(clock, 3)
    replicas.live(30)
    dead = replicas.agents.pop()
    assert replicas.live(12) == set()
    replicas.live(20)
    for agent in replicas.agents:
        observer = replicas.observers[agent]
        assert [each for each in (*replicas.agents, dead) if observer.is_gone(each)] == [dead]


def test_only_the_deletion_of_a_lease_wakes_the_adoption(pool: Pool) -> None:
    woken: list[bool] = []
    pool.leases.on_change = lambda: woken.append(True)
    pool.see(OTHER)
    assert not woken
    pool.see(OTHER, "DELETED")
    assert woken


# ---- the agent's own Lease, and expired Leases


async def test_the_lease_of_an_agent_that_died_long_ago_is_deleted_if_unchanged(pool: Pool) -> None:
    pool.pass_seconds(500)
    await pool.leases.delete_expired()
    assert pool.api.asked == []
    pool.pass_seconds(150)
    version = pool.leases.objects[f"lease-of-{OTHER}"]["metadata"]["resourceVersion"]
    pool.api.errors = [ClusterError("it was renewed meanwhile", status=409)]
    await pool.leases.delete_expired()
    ((verb, path, body),) = pool.api.asked
    assert (verb, path.rsplit("/", 1)[-1]) == ("delete", f"lease-of-{OTHER}")
    assert body is not None
    assert body["preconditions"] == {"uid": f"lease-of-{OTHER}", "resourceVersion": version}
    await pool.leases.delete_expired()
    assert pool.api.metrics.registry.get_sample_value("sealci_agent_swept_total", {"kind": "lease"}) == 1


@pytest.mark.parametrize(
    ("renewed", "is_deleted"),
    [("2026-01-01T11:49:00.000000Z", True), ("2026-01-01T11:55:00.000000Z", False), (None, False)],
)
async def test_an_agent_deletes_a_lease_that_ran_out_long_before_its_own_start(
    pool: Pool, renewed: str | None, is_deleted: bool
) -> None:
    pool.leases.objects[f"lease-of-{OTHER}"]["spec"]["renewTime"] = renewed
    await pool.leases.delete_expired()
    assert pool.api.asked == [], "the agent has not yet seen whether the other agent is alive"
    pool.pass_seconds(20)
    await pool.leases.delete_expired()
    assert bool(pool.api.asked) is is_deleted


async def test_a_renewed_lease_stays_whatever_the_clock_of_its_agent_is(pool: Pool) -> None:
    pool.leases.objects[f"lease-of-{OTHER}"]["spec"]["renewTime"] = "2020-01-01T00:00:00Z"
    pool.pass_seconds(60, OTHER)
    pool.leases.objects[f"lease-of-{OTHER}"]["spec"]["renewTime"] = "2020-01-01T00:00:00Z"
    await pool.leases.delete_expired()
    assert pool.api.asked == []


async def test_a_renewal_without_an_answer_does_not_delay_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate({"cluster": {"lease_duration": "2s", "lease_renew": "0.5s"}})
    leases = Leases(Api(), settings, ME, ClusterFacts())  # type: ignore[arg-type]  # a fake client
    tries: asyncio.Queue[None] = asyncio.Queue()

    async def lost() -> None:
        tries.put_nowait(None)
        await asyncio.Event().wait()

    monkeypatch.setattr(leases, "renew", lost)
    task = asyncio.create_task(leases.keep(), name="keep")
    async with asyncio.timeout(30):
        for _ in range(3):
            await tries.get()
    assert not leases.acquired.is_set()
    task.cancel()
    await asyncio.wait({task})


def test_two_denied_renewals_in_a_row_mean_that_access_is_denied(pool: Pool) -> None:
    leases = pool.leases
    for errors, denied in (
        ([401], False),
        ([401, 403], True),
        ([403, 500, 403], False),
        ([403, 0, 401], False),
    ):
        leases.record_renewal()
        for status in errors:
            leases.count_denial(ClusterError("no", status=status) if status else TimeoutError())
        assert leases.access_denied.is_set() is denied, errors
    leases.count_denial(ClusterError("no", status=401))
    assert leases.access_denied.is_set()
    leases.record_renewal()
    assert not leases.access_denied.is_set()

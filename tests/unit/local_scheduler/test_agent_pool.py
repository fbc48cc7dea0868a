"""The agents that are connected to the local scheduler.

An agent has at most one stream, and an action runs on at most one agent.
"""

from __future__ import annotations

from agent.domain.session_state import Feature, Health, Readiness, WarmImage
from agent.local_scheduler.action_state import ActionState
from agent.local_scheduler.agent_pool import AgentPool
from agent.local_scheduler.agent_stream import AgentStream
from agent.local_scheduler.records import ActionRecord, PipelineRun
from agent.local_scheduler.storage.changes import StoredPipeline
from agent.pipeline.parser import PipelineAction


def action_record() -> ActionRecord:
    run = PipelineRun(StoredPipeline("pipeline1", "p.yaml", "", 0.0))
    return ActionRecord(PipelineAction("a", "image", ("x",)), ActionState("pipeline1", "a"), run)


def test_an_action_is_on_one_agent_at_most() -> None:
    pool, record = AgentPool(), action_record()
    first, second = AgentStream("first.1", 1), AgentStream("second.1", 1)
    pool.add(first)
    pool.add(second)
    pool.bind(record, first)
    pool.bind(record, second)
    assert (first.sessions, second.sessions, record.agent_id) == (set(), {"pipeline1/a"}, "second.1")
    assert pool.stream_of(record) is second
    pool.unbind(record, second)
    assert pool.stream_of(record) is None


def test_a_new_stream_of_a_pod_has_no_action_of_the_older_stream() -> None:
    pool, record = AgentPool(), action_record()
    older, newer = AgentStream("pod.1", 1), AgentStream("pod.1", 1)
    pool.add(older)
    pool.bind(record, older)
    pool.add(newer)
    assert older.closed
    assert pool.stream_of(record) is None
    assert not pool.remove(older)
    assert pool.remove(newer)


def test_the_least_loaded_agent_has_the_largest_share_of_free_slots() -> None:
    pool = AgentPool()
    assert pool.least_loaded(image="alpine") is None
    for name, slots, running in (("half", 4, 2), ("quarter", 4, 1), ("full", 50, 50)):
        stream = AgentStream(name, slots)
        stream.update_health(Health(Readiness.READY, slots, running))
        pool.add(stream)
    found = pool.least_loaded(image="alpine")
    assert found is not None
    assert found.agent_id == "quarter"


def test_an_action_goes_to_the_agent_whose_warm_pods_have_its_image() -> None:
    pool = AgentPool()
    for name, running, idle in (("free", 0, 0), ("warm", 3, 2)):
        stream = AgentStream(name, 4)
        stream.update_health(Health(Readiness.READY, 4, running, warm=(WarmImage("alpine", "1", "1Gi", idle),)))
        pool.add(stream)
    chosen = []
    for image in ("alpine", "alpine", "debian"):
        found = pool.least_loaded(image=image)
        assert found is not None
        chosen.append(found.agent_id)
        found.sent_since_health += 2
    # The first two actions have used up the warm pods that the report named.
    assert chosen == ["warm", "free", "free"]


def test_a_warm_pod_of_another_class_is_no_reason_to_choose_an_agent() -> None:
    pool, classes = AgentPool(), frozenset({"gpu"})
    for name, running, image in (("free", 0, "alpine"), ("warm", 3, "debian")):
        stream = AgentStream(name, 4, frozenset(), classes)
        waiting = WarmImage(image, "1", "1Gi", 1, "gpu")
        stream.update_health(Health(Readiness.READY, 4, running, warm=(waiting,)))
        pool.add(stream)
    for environment_class, expected in (("gpu", "warm"), ("", "free")):
        found = pool.least_loaded(frozenset(), environment_class, "debian")
        assert found is not None
        assert found.agent_id == expected


def test_an_action_goes_only_to_an_agent_that_has_its_features() -> None:
    pool, needed = AgentPool(), frozenset({Feature.SERVICES})
    assert pool.missing_features(needed) == needed
    plain, able = AgentStream("plain.1", 9), AgentStream("able.1", 1, needed)
    for stream in (plain, able):
        stream.update_health(Health(Readiness.READY, stream.slots, 0))
    pool.add(plain)
    assert pool.least_loaded(needed) is None
    assert pool.missing_features(needed) == needed
    pool.add(able)
    assert pool.least_loaded(needed) is able
    # A full agent misses no feature: the action only waits for its slot.
    able.update_health(Health(Readiness.READY, 1, 1))
    assert pool.least_loaded(needed) is None
    assert pool.missing_features(needed) == frozenset()


def test_an_action_goes_only_to_an_agent_that_has_its_class() -> None:
    pool, services, none = AgentPool(), frozenset({Feature.SERVICES}), frozenset[Feature]()
    assert pool.missing_for(none, "gpu") == "no connected agent has the class gpu"
    able = AgentStream("able.1", 1, services, frozenset({"large", "arm64"}))
    gpu = AgentStream("gpu.1", 1, none, frozenset({"gpu"}))
    for stream in (able, gpu):
        stream.update_health(Health(Readiness.READY, 1, 0))
        pool.add(stream)
    assert pool.least_loaded(none, "gpu") is gpu
    assert pool.least_loaded(none, "gpux") is None
    assert pool.missing_for(none, "gpux") == "no connected agent has the class gpux; there are: arm64, gpu, large"
    assert pool.missing_for(services, "gpu") == "no connected agent has both the class gpu and the feature services"
    assert pool.missing_for(services, "arm64") == ""

"""The status page shows the state of the agent, and no name or message can break out of its place in the HTML."""

from __future__ import annotations

from html.parser import HTMLParser

from agent.domain.errors import Reason, Stage
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Health, Readiness, WarmImage
from agent.http.status_page import SessionRow, Snapshot, page

NASTY = '<img src=x onerror="alert(1)">&'


class Tags(HTMLParser):
    """Collects the tags of a document, and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, _: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def shown(*recent: SessionRow, health: Health | None = None, not_ready: str = "", warm: bool = False) -> Tags:
    health = health or Health(Readiness.READY, slots=4, running=1)
    stages, services = (("setup", 2.0), ("commands", 73.0)), (("db", "ready"), (NASTY, "ended"))
    running = (SessionRow("run/1", 1, "image", "commands", 75.0, stages, environment_class="gpu", services=services),)
    tags = Tags()
    classes = ("large", "gpu")
    tags.feed(page(Snapshot("1.0", "pool", "pod.nonce", health, not_ready, 3, running, recent, classes, warm)))
    return tags


def test_names_and_messages_stay_text() -> None:
    outcome = Outcome(Result.FAILED, Stage.COMMANDS, Reason.COMMAND_FAILED, 3, 1, NASTY)
    tags = shown(SessionRow(NASTY, 2, NASTY, "commands", 3.0, ((NASTY, 1.0),), outcome))
    assert not tags.tags & {"img", "script"}
    assert tags.text.count(NASTY) == 5
    assert "COMMAND_FAILED (exit code 3): " in tags.text


def test_the_page_shows_how_the_agent_is() -> None:
    text = shown().text.replace("\N{NO-BREAK SPACE}", " ")
    for part in (
        "ready",
        "reachable",
        "1 of 4",
        "run/1",
        "1 min 15 s",
        "image · class gpu",
        "large, gpu",
        "setup 2.0 s · commands 1 min 13 s",
        f"services: db ready · {NASTY} ended",
    ):
        assert part in text
    away = Health(Readiness.DEGRADED, slots=4, cluster_reachable=False, remains=2)
    text = shown(health=away, not_ready="the cluster does not answer").text
    assert "the cluster does not answer" in text
    assert "No action has ended since the start." in text
    assert "warm pods" not in text


def test_the_page_shows_the_warm_pods_if_they_are_on() -> None:
    assert "none waits" in shown(warm=True).text
    health = Health(Readiness.READY, slots=4, warm=(WarmImage(NASTY, "1", "1Gi", 3, "gpu"),))
    tags = shown(health=health, warm=True)
    assert f"3 of {NASTY} (1, 1Gi, class gpu)" in tags.text
    assert not tags.tags & {"img", "script"}

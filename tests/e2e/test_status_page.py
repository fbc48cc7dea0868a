"""The status page of a real agent with sessions, in a real Chromium."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.e2e import browser
from tests.e2e.lab import BUSYBOX, until
from tests.e2e.observer import remains

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.lab import Lab

SECRET = "a-value-nobody-may-see"


def test_the_page_shows_running_and_ended_sessions(lab: Lab, tmp_path: Path) -> None:
    secret = {"TOKEN": SECRET}
    url = f"http://127.0.0.1:{lab.agents[0].port}/"
    bad = "echo $TOKEN; echo '<script>' >&2; exit 7"
    lab.run({"broken": {"image": BUSYBOX, "commands": [bad], "secrets": ["TOKEN"]}}, secret_values=secret)
    lab.run({"fine": {"image": BUSYBOX, "commands": ["true"]}})
    until(lambda: not remains(lab.namespace), "a slot is still in use", 30)
    running = lab.start({"long": {"image": BUSYBOX, "commands": ["echo runs; sleep 1000"]}})
    running.until_running("long", "runs")
    page = browser.document(tmp_path / "profile", url)
    above, below = page.split("Recently ended")
    for part in ("/long", "commands", "1 of 20", "ready", "reachable", lab.pool):
        assert part in above
    for part in ("/fine", "succeeded", "/broken", "COMMAND_FAILED (exit code 7)", "command 1 failed with exit code 7"):
        assert part in below
    for hidden in (SECRET, "TOKEN", "echo", "sleep"):
        assert hidden not in page
    browser.picture(tmp_path / "profile", url, tmp_path / "phone.png", width=390, height=844)
    with urllib.request.urlopen(url) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
    running.cancel()
    running.wait()


def test_the_page_can_be_turned_off(own_lab: Lab) -> None:
    agent = own_lab.agent(http={"status_page": False})
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{agent.port}/")
    assert agent.get("/livez")[0] == 200

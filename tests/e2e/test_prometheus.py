"""A real Prometheus scrapes real agents and loads the alerts. Each query of the dashboard returns a result."""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import urllib.parse
import urllib.request
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e import kube
from tests.e2e.lab import BASH, BUSYBOX, DEBIAN, Lab, open_lab, until
from tests.e2e.object_store import object_store
from tests.e2e.repository import repository

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "charts" / "sealci-agent" / "files"
PHASES = {"schedule", "pull", "clone", "commands", "artifacts", "cleanup"}


@cache
def program(name: str) -> str:
    """Return the path of the program `name`, which is `prometheus` or `promtool`."""
    return str(Path(kube.provider("prometheus", timeout=900).splitlines()[-1]) / name)


def dashboard() -> list[tuple[str, str]]:
    """Return the title of each panel of the dashboard, with a query of the panel whose variables are filled in."""
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    return [(panel["title"], fill(target["expr"])) for panel in panels for target in panel.get("targets", ())]


def fill(query: str) -> str:
    """Replace the variables of a query as Grafana replaces them if all namespaces and pods are selected."""
    for name, value in {"$namespace": ".*", "$pod": ".*", "$__rate_interval": "2m", "$__range": "5m"}.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


class Prometheus:
    """A running Prometheus server, which scrapes some agents every second."""

    def __init__(self, folder: Path, targets: dict[str, int]) -> None:
        config = folder / "prometheus.yml"
        jobs = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "ci", "pod": pod}}
            for pod, port in targets.items()
        ]
        scrape = {"job_name": "agents", "scrape_interval": "1s", "static_configs": jobs}
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"evaluation_interval": "1s"},
                    "rule_files": [str(FILES / "alerts.yaml")],
                    "scrape_configs": [scrape],
                }
            )
        )
        flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        flags += ["--web.listen-address=127.0.0.1:0"]
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([program("prometheus"), *flags], stdout=log, stderr=log)
        self.port = until(self.chosen_port, "Prometheus does not listen", 60)
        until(self.ready, "Prometheus did not become ready", 60)

    def chosen_port(self) -> int:
        """Return the port at which Prometheus listens, by its log. 0 if it does not listen yet."""
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r'msg="Listening on" address=\S+:(\d+)', self.log.read_text())
        return int(found[1]) if found else 0

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def get(self, path: str, **query: str) -> Any:
        """Send a request to the API of Prometheus. Return the data of the answer."""
        asked = f"{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{asked}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate a query now. Return the labels and the value of each series.

        Values that are not numbers are left out.
        """
        found = [(each["metric"], float(each["value"][1])) for each in self.get("query", query=query)["result"]]
        return [(labels, value) for labels, value in found if not math.isnan(value)]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def unanswered(prometheus: Prometheus) -> list[str]:
    """Return the queries of the dashboard that have no answer yet."""
    return [query for _, query in dashboard() if not prometheus.query(query)]


def series(text: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Return the names and labels of all series of a scrape."""
    families = text_string_to_metric_families(text)
    return {(each.name, frozenset(each.labels.items())) for family in families for each in family.samples}


def test_promtool_accepts_the_alerts() -> None:
    promtool = program("promtool")
    for command in (["check", "rules", str(FILES / "alerts.yaml")], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            [promtool, *command], cwd=ROOT / "tests" / "alerts", capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    rules = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"][0]["rules"]
    tested = yaml.safe_load((ROOT / "tests" / "alerts" / "alerts_test.yaml").read_text())["tests"]
    fired = {each["alertname"] for test in tested for each in test["alert_rule_test"] if each["exp_alerts"]}
    silent = {each["alertname"] for test in tested for each in test["alert_rule_test"] if not each["exp_alerts"]}
    assert {rule["alert"] for rule in rules} == fired == silent


def test_alerts_and_dashboard_use_existing_metrics() -> None:
    table = (ROOT / "docs" / "metrics.md").read_text()
    known = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    used = {each for _, query in dashboard() for each in re.findall(r"\b(?:sealci_agent|process)_\w+", query)}
    used |= set(re.findall(r"\bsealci_agent_\w+", (FILES / "alerts.yaml").read_text()))
    assert {re.sub(r"_(bucket|sum|count)$", "", each) for each in used} <= known
    titles = [panel["title"] for panel in json.loads((FILES / "dashboard.json").read_text())["panels"]]
    for question in (
        "Is there room?",
        "Is it healthy?",
        "Where does the time go?",
        "What fails, and whose fault is it?",
        "Do warm pods pay off?",
        "Where do files go?",
    ):
        assert question in titles
    shown = {re.sub(r"_(bucket|sum|count)$", "", each) for each in used}
    print(f"\n  metrics that neither dashboard nor alerts use: {sorted(known - shown)}")


def busy(lab: Lab, folder: Path) -> None:
    """Run actions with a clone, with a cache, in a warm pod, with a failure, and with a lost pod."""
    kept = {"cache": [{"key": "kept", "paths": ["kept"]}]}
    with repository(folder) as url:
        reports = lab.run(
            {
                "cloned": {"image": DEBIAN, "commands": ["cat file", "echo x > made"], "repo": {"url": url}},
                "failing": {"image": BUSYBOX, "commands": ["exit 3"]},
                "written": {"image": BUSYBOX, "commands": ["seq 20000", "echo x > made", "echo x > kept"], **kept},
                "warm": {"image": BASH, "commands": ["echo x > made"]},
            }
        )
    outcomes = {name: report.outcome[0] for name, report in reports.items()}
    assert outcomes == {"cloned": "succeeded", "failing": "failed", "written": "succeeded", "warm": "succeeded"}
    lost = lab.start({"lost": {"image": BUSYBOX, "commands": ["echo begun", "sleep 100"]}})
    lost.until_running("lost", "begun")
    kube.kubectl("delete", "pods", "--all", "-n", lab.namespace, "--grace-period=0", "--force", "--wait=false")
    assert lost.wait()["lost"].outcome[:2] == ("failed", "POD_DELETED")


@pytest.fixture
def scraped(namespace: str, tmp_path: Path) -> Iterator[tuple[Lab, Prometheus]]:
    """Yield a lab with two agents of two slots, each with a warm pod, and a Prometheus that scrapes them."""
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(object_store(tmp_path))
        settings = {
            "policy": {"repository_schemes": ["git"]},
            "agent": {"slots": 2},
            "warm": {"pools": [{"image": BASH}]},
        }
        lab = stack.enter_context(open_lab(namespace, tmp_path, **settings, **store.cache_options(tmp_path)))
        agents = [lab.agent(), lab.agent()]
        for agent in agents:
            until(lambda: 'sealci_agent_warm_pods{state="idle"} 1.0' in agent.get("/metrics")[1], "no warm pod", 90)  # noqa: B023
        prometheus = Prometheus(tmp_path, {f"agent-{number}": agent.port for number, agent in enumerate(agents)})
        try:
            yield lab, prometheus
        finally:
            prometheus.close()


def test_every_query_of_the_dashboard_has_an_answer(scraped: tuple[Lab, Prometheus], tmp_path: Path) -> None:
    lab, prometheus = scraped
    before = [series(agent.get("/metrics")[1]) for agent in lab.agents]
    until(lambda: len(prometheus.query("sealci_agent_build_info")) == 2, "the agents are not scraped")
    busy(lab, tmp_path)
    # Prometheus scrapes one agent after the other. A rate needs a sample before and a sample after the change.
    for query in (
        "sum(sealci_agent_actions_completed_total) >= 5",
        'sum(sealci_agent_warm_claims_total{result="warm"}) == 1',
        'sum(sealci_agent_phase_duration_seconds_count{phase="cleanup"}) >= 5',
        "sum(rate(sealci_agent_phase_duration_seconds_count[2m])) > 0",
    ):
        until(lambda query=query: prometheus.query(query), f"this does not become true: {query}", 60)
    with contextlib.suppress(AssertionError):
        until(lambda: not unanswered(prometheus), "some queries have no answer", 60)
    print()
    for title, query in dashboard():
        answer = prometheus.query(query)
        shown = ", ".join(f"{' '.join(labels.values())}={value:.4g}" for labels, value in answer[:4])
        print(f"  {title}: {query}\n    -> {len(answer)}: {shown}")
    assert unanswered(prometheus) == []
    counted = {labels["phase"] for labels, _ in prometheus.query("sealci_agent_phase_duration_seconds_count > 0")}
    assert counted == PHASES
    timed = {labels["phase"] for labels, _ in prometheus.query("sealci_agent_phase_duration_seconds_sum > 0")}
    # A clone that takes less than a second can count as 0 s, because the times in a pod's status are whole seconds.
    assert timed | {"clone"} == PHASES
    ended = prometheus.query("sealci_agent_actions_completed_total > 0")
    faults = {(labels.get("fault", ""), labels.get("reason", "")) for labels, _ in ended}
    assert faults == {("", ""), ("user", "COMMAND_FAILED"), ("infrastructure", "POD_DELETED")}
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 9
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]
    assert [series(agent.get("/metrics")[1]) for agent in lab.agents] == before, "series appeared on the way"

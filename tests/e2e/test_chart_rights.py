"""Each right of the chart's Role is removed in turn: the agent fails with a reason and a message, without a traceback.

The agent runs with the token of a ServiceAccount that is bound to the Role as helm renders it. A test removes rights of
the running agent by changing the Role. Rights that an agent needs to start are missing from the beginning. The agent
needs `get pods` and `delete secrets` only after a lost answer of the API server. test_doctor.py covers these two.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from agent.cluster.capabilities import LOOK_AFTER_RESIZE_SINCE
from agent.domain.json import Object
from tests.e2e import kube
from tests.e2e.gate import gate
from tests.e2e.lab import BUSYBOX, Agent, Lab, open_lab, until
from tests.e2e.observer import remains
from tests.e2e.release import CHART, helm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)
QUICK = {"delete_timeout": "1s", "sweep_interval": "1s", "retry_for": "2s", "lease_duration": "3s", "lease_renew": "1s"}


class Account:
    """A ServiceAccount with the chart's Role. `without` names the rights that the account never has."""

    def __init__(self, namespace: str, name: str, folder: Path, *without: str) -> None:
        self.namespace = namespace
        self.name = name
        values = ["--set", f"scheduler.address=x:1,fullnameOverride={name},cluster.namespace={namespace}"]
        templates = ["role", "anchor", "serviceaccounts"]
        shown = [word for each in templates for word in ("--show-only", f"templates/{each}.yaml")]
        done = helm("template", name, str(CHART), "--namespace", namespace, *values, *shown)
        assert done.returncode == 0, done.stderr
        objects = [each for each in yaml.safe_load_all(done.stdout) if each]
        (self.role,) = (each for each in objects if each["kind"] == "Role")
        (anchor,) = (each for each in objects if each["kind"] == "ConfigMap")
        self.anchor = anchor["metadata"]["name"]
        for right in without:
            self.role = lacking(self.role, right)
        kube.apply(*(each for each in objects if each["kind"] != "Role"), self.role)
        self.kubeconfig = folder / f"{name}.kubeconfig"
        config = yaml.safe_load(kube.kubectl("config", "view", "--raw", "--minify", "--flatten"))
        token = kube.kubectl("create", "token", name, "--namespace", namespace).strip()
        config["users"] = [{"name": name, "user": {"token": token}}]
        config["contexts"][0]["context"]["user"] = name
        self.kubeconfig.write_text(yaml.safe_dump(config))

    @property
    def settings(self) -> Object:
        """Return the settings of an agent that runs as this account."""
        cluster = {"kubeconfig": str(self.kubeconfig), **QUICK}
        # No registry answers at localhost, so the limit of a missing image is `registry_grace`.
        policy = {"registry_grace": "1s"}
        return {"cluster": cluster, "agent": {"anchor": self.anchor, "drain_timeout": "1s"}, "policy": policy}

    @contextlib.contextmanager
    def without(self, right: str) -> Iterator[None]:
        """Remove a right of the account while the block runs. `right` is `VERB RESOURCE`, such as `list leases`."""
        kube.apply(lacking(self.role, right))
        self.await_right(right, "no")
        try:
            yield
        finally:
            kube.apply(self.role)
            self.await_right(right, "yes")

    def await_right(self, right: str, answer: str) -> None:
        """Wait until the API server grants the right (`answer` is `yes`) or denies it (`answer` is `no`).

        `kubectl auth can-i` prints the answer.
        """
        user = f"--as=system:serviceaccount:{self.namespace}:{self.name}"
        verb, resource = right.split()
        resource, _, subresource = resource.partition("/")
        words = ("auth", "can-i", verb, resource, f"--subresource={subresource}", "--namespace", self.namespace, user)
        until(lambda: kube.kubectl(*words, check=False).strip() == answer, f"{right} is not {answer}")


def lacking(role: Object, right: str) -> Object:
    """Return a copy of a Role without one right. The right is `VERB RESOURCE`, such as `list leases`."""
    verb, resource = right.split()
    role = copy.deepcopy(role)
    (rule,) = (each for each in role["rules"] if each["resources"] == [resource])
    rule["verbs"].remove(verb)
    if not rule["verbs"]:
        role["rules"].remove(rule)
    return role


@pytest.fixture(scope="module")
def account(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Account:
    return Account(namespace, "agent", tmp_path_factory.mktemp("account"))


@pytest.fixture(scope="module")
def lab_settings(account: Account) -> dict[str, Any]:
    return account.settings


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """Yield the lab, whose agents use the ServiceAccount of the fixture `account`.

    At the end, check that the first agent has logged no traceback.
    """
    yield lab
    assert "Traceback" not in lab.agents[0].log


def test_with_all_rights_an_action_runs_with_log_files_and_secrets(lab: Lab) -> None:
    report = lab.run(
        {"action": {"image": BUSYBOX, "commands": ["echo hello", "echo x > file"], "secrets": ["TOKEN"]}},
        secret_values={"TOKEN": "all-the-rights"},
    )["action"]
    assert report.outcome == ("succeeded", None, 0)
    assert report.text == "hello\n"
    assert set(report.files) == {"file"}


def test_without_create_pods(lab: Lab, account: Account) -> None:
    with account.without("create pods"):
        report = lab.one(BUSYBOX, "true")
    assert report.outcome == ("failed", "CLUSTER_UNAVAILABLE", None)
    assert "create pods: pods is forbidden" in report.finished["message"]
    assert "The agent may lack a permission" in report.text


def test_without_create_secrets(lab: Lab, account: Account) -> None:
    with account.without("create secrets"):
        report = lab.run(
            {"action": {"image": BUSYBOX, "commands": ["true"], "secrets": ["TOKEN"]}},
            secret_values={"TOKEN": "never-in-a-secret"},
        )["action"]
    assert report.outcome == ("failed", "CLUSTER_UNAVAILABLE", None)
    assert "create secrets: secrets is forbidden" in report.finished["message"]
    assert "The agent may lack a permission" in report.text


def test_without_get_of_logs_the_outcome_stands_and_the_loss_is_reported(lab: Lab, account: Account) -> None:
    with account.without("get pods/log"):
        report = lab.one(BUSYBOX, "echo hello", artifacts="none")
    assert report.outcome == ("succeeded", None, 0)
    assert "forbidden" in report.text
    assert "pods/log" in report.text


def test_without_patch_of_resize_actions_succeed_and_one_log_entry_names_the_cause(lab: Lab, account: Account) -> None:
    with account.without("patch pods/resize"):
        reports = [lab.one(BUSYBOX, "echo x > file; exit 3", artifacts={"paths": ["file"], "when": "always"})]
        reports += [lab.one(BUSYBOX, "echo hello", artifacts="none")]
        until(lambda: not remains(lab.namespace), f"left: {remains(lab.namespace)}")
    assert [each.outcome for each in reports] == [("failed", "COMMAND_FAILED", 3), ("succeeded", None, 0)]
    assert set(reports[0].files) == {"file"}
    if kube.version() >= LOOK_AFTER_RESIZE_SINCE:
        assert lab.agents[0].log.count("the API server refuses pods/resize") == 1


@pytest.mark.parametrize("right", ["get pods/exec", "create pods/exec"])
def test_without_exec_an_action_with_declared_files_fails(lab: Lab, account: Account, right: str) -> None:
    with account.without(right):
        report = lab.one(BUSYBOX, "echo x > file", artifacts={"paths": ["file"]})
    # Before Kubernetes 1.35 an exec over a websocket needs only the verb `get`, so the action succeeds without the verb
    # `create`.
    if report.outcome[0] == "succeeded":
        assert right == "create pods/exec"
        assert kube.version() < (1, 35)
        return
    assert report.outcome == ("failed", "ARTIFACTS_FAILED", 0)
    assert "pods/exec" in report.finished["message"]
    assert "forbidden" in report.finished["message"]


def test_without_list_of_events_a_failed_set_up_reports_it(lab: Lab, account: Account) -> None:
    with account.without("list events"):
        report = lab.one("localhost/sealci-test/does-not-exist:1", "true")
    assert report.outcome == ("failed", "IMAGE_PULL_FAILED", None)
    assert "they cannot be read: list events: events is forbidden" in report.text


def test_without_delete_pods_a_left_pod_is_reported_and_deleted_later(lab: Lab, account: Account) -> None:
    with account.without("delete pods"):
        report = lab.one(BUSYBOX, "true", artifacts="none")
        assert report.outcome == ("succeeded", None, 0)
        until(lambda: "an environment could not be deleted" in lab.agents[0].log, "the agent did not log it", 60)
        assert remains(lab.namespace)
    until(lambda: not remains(lab.namespace), f"left: {remains(lab.namespace)}")
    assert "delete pods: pods" in lab.agents[0].log


def test_without_patch_of_pods_no_session_is_adopted_until_the_right_is_back(namespace: str, tmp_path: Path) -> None:
    account = Account(namespace, "adopting", tmp_path)
    settings = account.settings
    # An agent that renews its own Lease too late adopts no session. With these intervals, even an agent on a slow
    # machine renews its Lease in time.
    settings["cluster"] |= {"lease_duration": "10s", "lease_renew": "3s"}
    with open_lab(namespace, tmp_path, **settings) as lab:
        first = lab.agent()
        with gate() as end:
            submission = lab.start({"action": {"image": BUSYBOX, "commands": ["echo begun", end.knock]}})
            end.until_connected()
            second = lab.agent()
            with account.without("patch pods"):
                first.kill()
                lab.agents.remove(first)  # The test has killed this agent, so the lab must not stop it.
                until(lambda: "a session was not claimed" in second.log, "the second agent did not try to adopt", 90)
                assert "patch pods: pods" in second.log
            end.open()
            assert submission.wait()["action"].outcome == ("succeeded", None, 0)
        assert "adopted a session" in second.log
        assert "Traceback" not in second.log


WITHOUT = {
    "list pods": "list pods: pods is forbidden",
    "watch pods": "watch pods: pods is forbidden",
    "list leases": "list leases: leases.coordination.k8s.io is forbidden",
    "watch leases": "watch leases: leases.coordination.k8s.io is forbidden",
    "create leases": "create leases: leases.coordination.k8s.io is forbidden",
    "patch leases": "patch leases: leases.coordination.k8s.io",
    "get configmaps": "get configmaps: configmaps",
    "delete leases": "the agent's Lease could not be deleted",
}
# An agent that lacks one of these rights becomes ready. But it cannot adopt sessions, or other agents adopt its
# sessions only after a delay.
READY_WITHOUT = {"list leases", "watch leases", "delete leases"}


def test_an_agent_reports_a_missing_right_that_it_needs_and_is_not_ready(own_lab: Lab, tmp_path: Path) -> None:
    agents: dict[str, Agent] = {}
    try:
        for number, right in enumerate(WITHOUT):
            account = Account(own_lab.namespace, f"without-{number}", tmp_path, right)
            pool = {"agent": {**account.settings["agent"], "pool": f"without-{number}"}}
            agents[right] = Agent(own_lab, number, {**account.settings, **pool})
        for right, says in WITHOUT.items():
            agent = agents[right]
            until(lambda agent=agent: "serving metrics" in agent.log, f"{right}: {agent.log}", 60)
            if right in READY_WITHOUT:
                until(lambda agent=agent: agent.get("/readyz")[0] == 200, f"without {right} it is not ready", 60)
            if right != "delete leases":
                until(lambda agent=agent, says=says: says in agent.log, f"{right}: {agent.log}", 60)
            assert (agent.get("/readyz")[0] == 200) == (right in READY_WITHOUT), right
            assert agent.get("/livez")[0] == 200
        for right, agent in agents.items():
            agent.stop()
            assert "Traceback" not in agent.log
            assert WITHOUT[right] in agent.log
    finally:
        for agent in agents.values():
            agent.kill()

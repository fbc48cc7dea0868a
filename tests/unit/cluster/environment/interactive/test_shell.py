"""The shell after a failure runs in the action's own image where the cluster allows it, else in container `helper`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.api.container_ref import ContainerRef
from agent.cluster.environment.interactive import shell
from agent.cluster.environment.interactive.debugging import DebugOptions
from agent.cluster.pod import manifest
from agent.cluster.pod.action_order import shell_variables
from agent.domain.actions import Action, Key
from agent.domain.errors import ClusterError, Reason, Stage
from agent.domain.json import Object
from agent.domain.outcome import Outcome, Result
from agent.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client
    from tests.fakes.api import FakeApi

ACTION = Action(Key("a"), "debian:12", ("false",), env={"COLOUR": "$red"}, secrets={"TOKEN": "hunter2"})
PLAN = manifest.Plan(ACTION, "p", "ci", "agent-1", "0123456789abcdef", timeout=60.0)
OUTCOME = Outcome(Result.FAILED, Stage.COMMANDS, Reason.COMMAND_FAILED, 1, 1, "command 1 failed")
HELPER = ContainerRef("ci", "p", "helper")
RUNNING: Object = {"running": {}}


def pod(state: Object, settings: Settings | None = None) -> Object:
    """Return the pod of an action that has failed. `state` is that of the ephemeral container."""
    status = {
        "containerStatuses": [{"name": "helper", "state": RUNNING}],
        "ephemeralContainerStatuses": [{"name": "shell", "state": state}],
    }
    return manifest.pod(PLAN, settings or Settings()) | {"status": status}


async def start(api: FakeApi, state: Object) -> ContainerRef:
    api.pods["p"] = pod(state)
    api.answer("patch", "/ephemeralcontainers", 200, body="{}")
    async with api.serving() as client:
        return await shell.start_like_action(client, "ci", "p", shell_variables(PLAN, Settings()))


@pytest.mark.parametrize("profile", ["baseline", "restricted"])
def test_the_container_is_like_the_action_s(profile: str) -> None:
    settings = Settings.model_validate({"environment": {"profile": profile}})
    created = manifest.pod(PLAN, settings)
    action = created["spec"]["containers"][-1]
    action["volumeMounts"].append({"name": "x", "mountPath": "/x", "subPath": "part"})
    found = shell.shell_container(created, shell_variables(PLAN, settings))
    assert {name: found[name] for name in ("image", "securityContext", "workingDir")} == {
        name: action[name] for name in ("image", "securityContext", "workingDir")
    }
    values = {each["name"]: each.get("value") or each["valueFrom"]["secretKeyRef"] for each in found["env"]}
    assert values["COLOUR"] == "$$red"
    assert values["TOKEN"] == {"name": PLAN.secret_name, "key": "TOKEN", "optional": True}
    home = ["/home/action"] if profile == "restricted" else []
    assert [mount["mountPath"] for mount in found["volumeMounts"]] == ["/workspace", *home]
    # Kubernetes refuses these fields in an ephemeral container.
    assert not found.keys() & {"resources", "lifecycle", "ports", "livenessProbe", "startupProbe"}


async def test_the_container_is_added_to_the_pod_and_used_when_it_runs(api: FakeApi) -> None:
    assert await start(api, RUNNING) == ContainerRef("ci", "p", "shell")
    (request,) = api.requests_for("patch")
    assert request.body is not None
    (added,) = request.body["spec"]["ephemeralContainers"]
    assert (added["name"], added["image"], added["stdin"]) == ("shell", "debian:12", True)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"waiting": {"reason": "ErrImagePull", "message": "not found"}}, "container shell: ErrImagePull: not found"),
        ({"terminated": {"reason": "StartError", "exitCode": 128}}, "container shell: StartError"),
    ],
)
async def test_a_container_that_fails_is_not_waited_for(api: FakeApi, state: Object, message: str) -> None:
    with pytest.raises(ClusterError) as failed:
        await start(api, state)
    assert failed.value.message == message


async def test_a_container_that_does_not_start_is_not_waited_for_long(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "START_SECONDS", 0.5)
    with pytest.raises(ClusterError, match="container shell did not start"):
        await start(api, {"waiting": {"reason": "ContainerCreating"}})


@pytest.mark.parametrize(
    ("status", "container", "text"),
    [
        (200, "shell", "the image and the variables of the action"),
        (403, "helper", "the agent's image, not the action's"),
    ],
)
async def test_the_person_gets_the_best_shell_that_the_cluster_allows(
    api: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    container: str,
    text: str,
) -> None:
    opened: list[ContainerRef] = []

    async def run_shell(client: Client, target: ContainerRef, folder: str) -> int:
        opened.append(target)
        assert folder == "/workspace"
        return 0

    @asynccontextmanager
    async def screen() -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(shell, "run_shell", run_shell)
    api.pods["p"] = pod(RUNNING)
    api.answer("patch", "/ephemeralcontainers", status, "no", body="{}" if status == 200 else None)
    async with api.serving() as client:
        context: Any = type("Context", (), {"settings": Settings(), "client": client})
        options = DebugOptions(screen, shell=True)  # noqa: S604 - no process is started
        await options.open_shell(context, PLAN, api.pods["p"], OUTCOME, HELPER)
        await replace(options, shell=False).open_shell(context, PLAN, api.pods["p"], OUTCOME, HELPER)
    assert opened == [ContainerRef("ci", "p", container)]
    shown = capsys.readouterr().out
    assert shown.startswith("✘ command 1 failed\n  A shell in /workspace of ci/p")
    assert text in shown

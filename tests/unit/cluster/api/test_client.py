"""Requests to the Kubernetes API: failures, retries and counters."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tenacity import AsyncRetrying, RetryCallState

from agent.cluster.api.client import Client, retry_pause
from agent.cluster.api.configuration import proxy_of
from agent.cluster.api.timings import ApiTimings
from agent.domain.errors import ClusterError, SettingsError
from agent.settings import ClusterSettings
from agent.telemetry.metrics import Metrics
from tests.fakes.api import HANG, FakeApi

PATH = "/api/v1/namespaces/ci/pods"
AT_ONCE = ApiTimings(retry_pause=0.0)


@pytest.fixture
def api() -> FakeApi:
    """Return a fake API server whose clients retry without a pause."""
    return FakeApi(timings=AT_ONCE)


def sample(client: Client, name: str, **labels: str) -> float:
    return client.metrics.registry.get_sample_value(f"sealci_agent_{name}", labels) or 0.0


def kubeconfig(host: str) -> str:
    return (
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: k, user: u}}],"
        f" clusters: [{{name: k, cluster: {{server: '{host}'}}}}],"
        " users: [{name: u, user: {token: abc}}]}"
    )


async def failure(client: Client) -> ClusterError:
    with pytest.raises(ClusterError) as error:
        await client.request("get", "pods", f"{PATH}/none")
    return error.value


async def test_an_answer_is_its_json(api: FakeApi) -> None:
    async with api.serving() as client:
        assert (await client.request("get", "version", "/version"))["gitVersion"] == "v1.37.2"
        assert client.reachable
        assert sample(client, "k8s_requests_total", verb="get", resource="version", code="2xx") == 1
        assert sample(client, "cluster_reachable") == 1


async def test_query_and_body_arrive(api: FakeApi) -> None:
    async with api.serving() as client:
        api.answer("create", "pods", 201, body='{"made": 1}')
        made = await client.request("create", "pods", PATH, body={"a": "ü"}, query={"labelSelector": "a=b,c=d"})
    assert made == {"made": 1}
    assert (api.requests[0].query, api.requests[0].body) == ({"labelSelector": "a=b,c=d"}, {"a": "ü"})


async def test_a_failure_has_the_message_of_the_api(api: FakeApi) -> None:
    async with api.serving() as client:
        api.answer("get", "none", 429, "slow down", Retry_After="7")
        error = await failure(client)
        assert (error.status, error.retry_after, error.retryable) == (429, 7.0, True)
        assert error.message == "get pods: slow down (HTTP 429)"
        assert client.reachable, "an API that refuses a request is reachable"
        assert sample(client, "k8s_requests_total", verb="get", resource="pods", code="4xx") == 1


@pytest.mark.parametrize("body", ["<html>proxy</html>", "[1]", '"text"', "", '{"message": null}'])
async def test_a_failure_without_a_status_object_has_its_http_status(api: FakeApi, body: str) -> None:
    async with api.serving() as client:
        api.answer("get", "none", 502, body=body)
        error = await failure(client)
        assert (error.status, error.retryable) == (502, True)
        assert "HTTP 502" in error.message


async def test_an_endless_failure_is_read_only_in_part(api: FakeApi) -> None:
    async with api.serving() as client:
        api.answer("get", "none", 500, body="x" * 1_000_000)
        assert len((await failure(client)).message) < 3000


@pytest.mark.parametrize("body", ["{", "<html/>", "\x00"])
async def test_a_success_without_json_is_retryable(api: FakeApi, body: str) -> None:
    async with api.serving() as client:
        api.answer("get", "none", 200, body=body)
        error = await failure(client)
        assert error.retryable
        assert "broke off" in error.message


async def test_no_answer_in_time_is_unreachable(api: FakeApi) -> None:
    async with api.serving(request_timeout=0.05) as client:
        await client.request("get", "version", "/version")
        assert sample(client, "cluster_reachable") == 1
        api.answer("get", "none", HANG)
        error = await failure(client)
        assert (error.status, error.retryable, client.reachable) == (0, True, False)
        assert sample(client, "k8s_requests_total", verb="get", resource="pods", code="error") == 1
        assert sample(client, "cluster_reachable") == 0
        await client.request("get", "version", "/version")
        assert client.reachable


async def test_a_refused_connection_is_unreachable(api: FakeApi) -> None:
    async with api.serving():
        api.host = "http://127.0.0.1:1"
        client = api.client()
        error = await failure(client)
        assert (error.status, error.retryable, client.reachable) == (0, True, False)
        await client.close()


async def test_a_cancelled_request_leaves_the_cluster_reachable(api: FakeApi) -> None:
    async with api.serving() as client:
        await client.request("get", "version", "/version")
        api.answer("get", "none", HANG)
        task = asyncio.create_task(client.request("get", "pods", f"{PATH}/none"))
        await api.until("a second request has arrived", lambda: len(api.requests) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.reachable
        assert sample(client, "cluster_reachable") == 1


async def test_answers_that_no_caller_reads_have_only_the_metadata(api: FakeApi) -> None:
    async with api.serving() as client:
        for verb, path in (("get", "p"), ("patch", "p"), ("patch", "p/resize"), ("delete", "p")):
            api.answer(verb, path, 200, body="{}")
            await client.request(verb, "pods", f"{PATH}/{path}", body={})
    short = [each.accept.startswith("application/json;as=PartialObjectMetadata;") for each in api.requests]
    assert short == [False, False, True, True]


async def test_the_caller_reads_a_stream_itself(api: FakeApi) -> None:
    api.logs["p", "action"] = b"\xff\x00raw\r\n"
    async with (
        api.serving() as client,
        client.stream(
            "get", "pods/log", f"{PATH}/p/log", query={"container": "action"}, timeout=aiohttp.ClientTimeout()
        ) as response,
    ):
        assert await response.read() == b"\xff\x00raw\r\n"


# ---- retries


async def get_with_retries(client: Client, seconds: float = 30.0) -> Any:
    return await client.retry("get", lambda: client.request("get", "pods", f"{PATH}/p"), seconds=seconds)


async def test_a_retryable_failure_is_retried(api: FakeApi) -> None:
    async with api.serving() as client:
        api.answer("get", "/p", 503, times=2)
        api.answer("get", "/p", 200, body='{"a": 1}')
        assert await get_with_retries(client) == {"a": 1}
        assert len(api.requests) == 3


async def test_a_permanent_failure_is_not_retried(api: FakeApi) -> None:
    async with api.serving() as client:
        with pytest.raises(ClusterError, match="HTTP 404"):
            await get_with_retries(client)
        assert len(api.requests) == 1


async def test_retries_end_at_their_limit(api: FakeApi) -> None:
    async with api.serving() as client:
        api.answer("get", "/p", 503, "busy", times=1000)
        with pytest.raises(ClusterError, match="busy"):
            await get_with_retries(client, seconds=0.5)
        assert len(api.requests) > 1


@pytest.mark.parametrize(("asked", "waits"), [(3.0, 3.0), (0.0, 0.0), (1000.0, 60.0), (None, 0.0)])
def test_retry_after_is_obeyed_up_to_a_limit(asked: float | None, waits: float) -> None:
    state = RetryCallState(AsyncRetrying(), None, (), {})
    error = ClusterError("x", retryable=True, retry_after=asked)
    state.set_exception((ClusterError, error, None))
    assert retry_pause(state, AT_ONCE) == waits


# ---- the kubeconfig


async def test_a_missing_configuration_is_a_settings_error(tmp_path: Path) -> None:
    settings = ClusterSettings(kubeconfig=tmp_path / "none")
    with pytest.raises(SettingsError, match="cluster: no cluster to use"):
        await Client.connect(settings, Metrics())


def write(file: Path, api: FakeApi) -> Path:
    """Write a kubeconfig for the API server `api` into `file`. Return `file`."""
    file.write_text(kubeconfig(api.host))
    return file


async def authorization(api: FakeApi, file: Path) -> str:
    """Make a request with the kubeconfig `file`. Return the Authorization header that the API server received."""
    client = await Client.connect(ClusterSettings(kubeconfig=file), Metrics())
    await client.request("get", "version", "/version")
    await client.close()
    return api.requests[0].authorization


async def test_the_token_of_a_kubeconfig_is_sent(api: FakeApi, tmp_path: Path) -> None:
    async with api.serving():
        assert await authorization(api, write(tmp_path / "config", api)) == "Bearer abc"


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"https_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ({"http_proxy": "http://proxy:3128"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "10.0.0.1"}, None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "10.0.0.2"}, "http://proxy:3128"),
    ],
)
def test_the_environment_names_the_proxy(
    environ: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert proxy_of("https://10.0.0.1:6443") == proxy


async def test_a_netrc_for_the_host_of_the_api_is_not_read(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with api.serving():
        assert await authorization(api, write(tmp_path / "config", api)) == "Bearer abc"


async def test_a_query_arrives_unchanged(api: FakeApi) -> None:
    async with api.serving() as client:
        await client.request("list", "pods", PATH, query={"labelSelector": "a/b=c,d=e f+g&h", "x": "%2F"})
    assert api.requests[0].query == {"labelSelector": "a/b=c,d=e f+g&h", "x": "%2F"}

"""Faults of a real object store, by name, and what a session makes of each: artifacts, and inputs.

No test needs a pod: the programs of container `helper` run as processes of this machine (see `store_flow`).
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from agent.domain.artifacts import FileData, StoredObject
from agent.domain.check_result import Verdict
from agent.domain.errors import Reason, Stage
from agent.domain.outcome import Result
from agent.execution.files import artifacts
from agent.objects.checks import check_store
from agent.objects.store import ObjectStore
from tests.e2e.object_store import BUCKET, Store, object_store
from tests.e2e.store_flow import Flow, PodFolder, open_flow, proxied
from tests.e2e.test_files import NAMES
from tests.fakes.store_proxy import no_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fakes.sink import RecordingSessionSink
    from tests.fakes.store_proxy import Rule, StoreProxy

HOURS = 7200.0
FILES = {"one": b"1\n", "two": b"2\n"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with object_store(tmp_path_factory.mktemp("store"), "127.0.0.1") as store:
        yield store


def write(files: dict[str, bytes]) -> Callable[[PodFolder], None]:
    return lambda pod: pod.write(files)


def nothing(_: PodFolder) -> None:
    """Run no command."""


def kinds(sent: RecordingSessionSink) -> set[type]:
    return {type(part) for part in sent.uploads[-1]} & {FileData, StoredObject}


# ---- the same files with and without a store


async def test_the_same_pipeline_gives_the_same_files_with_and_without_a_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(pod: PodFolder) -> None:
        subprocess.run([sys.executable, "-c", NAMES], cwd=pod.workspace, check=True)
        pod.write({"big": os.urandom(3 << 20)} if not seen else {"big": seen[0][b"big"][1]})

    seen: list[dict[bytes, tuple[int, bytes]]] = []
    for issuer, way in (("none", FileData), ("agent", StoredObject), ("scheduler", StoredObject)):
        async with open_flow(tmp_path / issuer, store.settings, issuer, monkeypatch) as flow:
            made, made_rig = await flow.run(make)
            assert made.outcome.result is Result.SUCCEEDED, made.log
            assert kinds(made) <= {way}
            got, got_rig = await flow.run(nothing)
            assert got.outcome.result is Result.SUCCEEDED, got.log
            seen += [made_rig.pod.files, got_rig.pod.files]
    assert len(seen[0]) > 15
    assert seen == [seen[0]] * 6


# ---- faults while artifacts are put into the store


def always(fault: int | str, method: str) -> Rule:
    async def rule(found: str, _path: str) -> int | str | None:
        return fault if found == method else None

    return rule


def at_first(fault: int | str, times: int, method: str) -> Rule:
    left = [fault] * times

    async def rule(found: str, _path: str) -> int | str | None:
        return left.pop() if left and found == method else None

    return rule


@contextmanager
def broken(flow: Flow, proxy: StoreProxy, fault: str, method: str, folder: Path) -> Iterator[None]:
    """Break the store, or the settings of the side that signs, until the end of the block."""
    assert flow.objects is not None
    whole, source, clock = flow.objects.settings, flow.objects.source, flow.objects.clock
    try:
        match fault:
            case "dead":
                with socket.socket() as nobody:
                    nobody.bind(("127.0.0.1", 0))
                    endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
                    flow.objects.settings = whole.model_copy(update={"endpoint": endpoint})
                    yield
                    return
            case "wrong region":
                flow.objects.settings = whole.model_copy(update={"region": "eu-north-1"})
            case "no bucket":
                flow.objects.settings = whole.model_copy(update={"bucket": "other"})
            case "wrong key":
                file = folder / "wrong"
                file.write_text("[default]\naws_access_key_id = tests\naws_secret_access_key = wrong\n")
                flow.objects.settings = whole.model_copy(update={"credentials_file": file})
                flow.objects.source = ObjectStore(flow.objects.settings).source
            case "skewed clock":
                flow.objects.clock = lambda: time.time() - HOURS
            case "flip" | "cut":
                proxy.rule = always(fault, method)
            case _:
                proxy.rule = always(int(fault), method)
        yield
    finally:
        flow.objects.settings, flow.objects.source, flow.objects.clock = whole, source, clock
        proxy.rule = no_fault


FAULTS = {
    "dead": r"Connection ?[Rr]efused",
    "cut": "RemoteDisconnected|ConnectionReset|BrokenPipe",
    "403": "HTTP 403 Scripted",
    "503": "HTTP 503 Scripted",
    "wrong region": r"HTTP 400 .*the region \"eu-north-1\" is wrong; expecting \"us-east-1\"",
    "wrong key": "HTTP 403 SignatureDoesNotMatch",
    "skewed clock": r"HTTP 403 .* signed the URL 7[12]\d\d s ago: compare the two clocks",
}
PUT_FAULTS = FAULTS | {"no bucket": "HTTP 404 NoSuchBucket", "flip": "HTTP 400 "}
SETTINGS_FAULTS = ("wrong region", "wrong key", "no bucket")
OF_SCHEDULER = ("503", "wrong key", "skewed clock")


@pytest.mark.parametrize(
    ("issuer", "fault"), [("agent", each) for each in PUT_FAULTS] + [("scheduler", each) for each in OF_SCHEDULER]
)
async def test_artifacts_go_through_the_scheduler_if_the_store_fails(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, issuer: str, fault: str
) -> None:
    monkeypatch.setattr(artifacts, "STORE_TRIES", 1)
    async with proxied(store) as (proxy, settings), open_flow(tmp_path, settings, issuer, monkeypatch) as flow:
        with broken(flow, proxy, fault, "PUT", tmp_path):
            sent, _ = await flow.run(write(FILES))
            assert flow.objects is not None
            if issuer == "agent" and fault in SETTINGS_FAULTS:
                (finding,) = [each async for each in check_store(flow.objects.settings)]
                assert (finding.verdict, "HTTP 40" in finding.detail) == (Verdict.FAILED, True)
        assert sent.outcome.result is Result.SUCCEEDED, sent.log
        assert kinds(sent) == {FileData}
        text = sent.log.decode()
        assert re.search(PUT_FAULTS[fault], text), text
        assert "the files now go through the scheduler" in text
        check_secrets(store, text)
        got, rig = await flow.run(nothing)
        assert rig.pod.contents == FILES, got.log


def check_secrets(store: Store, text: str) -> None:
    for word in ("X-Amz-Signature", store.secret):
        assert word not in text


@pytest.mark.parametrize("issuer", ["agent", "scheduler"])
async def test_faults_that_pass_need_no_second_copy(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, issuer: str
) -> None:
    async with proxied(store) as (proxy, settings), open_flow(tmp_path, settings, issuer, monkeypatch) as flow:
        assert flow.objects is not None
        flow.constants, flow.copies = {}, 2
        # A request breaks three times. Its URL has expired, and so has that of the other file.
        breaks, clock = at_first("cut", 3, "PUT"), flow.objects.clock
        flow.objects.clock = lambda: time.time() - HOURS

        async def rule(method: str, path: str) -> int | str | None:
            assert flow.objects is not None
            flow.objects.clock = clock
            return await breaks(method, path)

        proxy.rule = rule
        sent, _ = await flow.run(write(FILES))
        assert (sent.outcome.result, kinds(sent), len(sent.uploads)) == (Result.SUCCEEDED, {StoredObject}, 1), sent.log
        # The first URLs of the inputs have expired too. One answer breaks off, and a byte of another one is changed.
        flow.objects.clock = lambda: time.time() - HOURS
        faults: list[int | str | None] = [None, None, "cut", "flip"]

        async def second_rule(method: str, _path: str) -> int | str | None:
            assert flow.objects is not None
            flow.objects.clock = clock
            return faults.pop(0) if faults and method == "GET" else None

        proxy.rule = second_rule
        got, rig = await flow.run(nothing)
        assert got.outcome.result is Result.SUCCEEDED, got.log
        assert faults == []
        assert rig.pod.contents == FILES


# ---- faults while inputs are read from the store

GET_FAULTS = FAULTS | {"cut": "IncompleteRead|too early|RemoteDisconnected", "no bucket": "HTTP 404 NoSuchBucket"}


@pytest.mark.parametrize(
    ("issuer", "fault"), [("agent", each) for each in GET_FAULTS] + [("scheduler", each) for each in OF_SCHEDULER]
)
async def test_no_command_starts_without_its_inputs_from_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, issuer: str, fault: str
) -> None:
    async with proxied(store) as (proxy, settings), open_flow(tmp_path, settings, issuer, monkeypatch) as flow:
        made, _ = await flow.run(write(FILES))
        assert kinds(made) == {StoredObject}, made.log
        with without_bucket(store) if fault == "no bucket" else broken(flow, proxy, fault, "GET", tmp_path):
            sent, rig = await flow.run(nothing)
        outcome = sent.outcome
        assert (outcome.stage, outcome.reason) == (Stage.SETUP, Reason.OBJECT_STORE_UNAVAILABLE), sent.log
        assert re.search(GET_FAULTS[fault], outcome.message), outcome.message
        check_secrets(store, outcome.message + sent.log.decode())
        assert (rig.pod.words, rig.pod.files) == (b"", {})


@contextmanager
def without_bucket(store: Store) -> Iterator[None]:
    bucket = store.folder / BUCKET
    bucket.rename(store.folder.parent / BUCKET)
    try:
        yield
    finally:
        (store.folder.parent / BUCKET).rename(bucket)


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ("flip", Reason.INTERNAL, "one has another sha256 than when it was stored"),
        ("delete", Reason.INPUT_MISSING, "one is no longer in the object store (HTTP 404 NoSuchKey"),
    ],
)
async def test_an_object_that_has_changed_or_is_gone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, reason: Reason, message: str
) -> None:
    async with open_flow(tmp_path, store.settings, "agent", monkeypatch) as flow:
        before = set(store.objects)
        await flow.run(write({"one": b"1\n"}))
        (file,) = [path for name, path in store.objects.items() if name not in before]
        if change == "flip":
            file.write_bytes(b"0\n")
        else:
            file.unlink()
        sent, rig = await flow.run(nothing)
        assert (sent.outcome.stage, sent.outcome.reason) == (Stage.SETUP, reason)
        assert message in sent.outcome.message
        assert rig.pod.words == b""

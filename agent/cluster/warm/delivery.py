"""Deliver an order to a warm pod, in two phases, and ask a warm pod whether its commands have begun.

Each call uses one exec in container `helper`. The helper decides whether the commands begin (`in_pod.order_server`). So
after every failure the agent either knows the answer or asks for it. Nothing here keeps state.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import structlog

from agent.cluster import packaging
from agent.cluster.api.exec import ExecStream
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextlib import AbstractAsyncContextManager

    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef
    from agent.domain.json import Object

log = structlog.get_logger(__name__)

# Seconds until a delivery is given up. A warm pod usually answers within 0.1 s.
DELIVERY_SECONDS = 15.0
# Seconds until one question is given up, and seconds between two questions.
QUESTION_SECONDS, QUESTION_PAUSE = 10.0, 0.5
# Number of bytes that are sent at once, and largest number of bytes of an answer.
CHUNK_BYTES, MAX_ANSWER = 1 << 18, 4096


class NotBegun(ClusterError):
    """No command has run, and the pod starts none any more."""


class Unclear(ClusterError):
    """It is unknown whether the commands have begun."""


def delivery_exec(client: Client, target: ContainerRef, seconds: float) -> ExecStream:
    """Return an exec of the errand `deliver_order` that has not started yet."""
    return ExecStream(client, target, packaging.deliver_order_command(), seconds=seconds, stdin=True)


async def deliver(
    exec_in_pod: AbstractAsyncContextManager[ExecStream], order: bytes, nonce: str, claim: Awaitable[object]
) -> None:
    """Deliver the order through an exec of `deliver_order`, and return when the commands begin.

    An exec that is not open yet starts at once, because its start takes longer than the claim of the pod. Nothing is
    sent to the pod before `claim` has succeeded.

    Raises:
        NotBegun: the order was not started. The agent has sent no `go`, or the helper refused.
        Unclear: the exec broke after `go` was sent.
    """
    go_sent = False
    try:
        async with asyncio.timeout(DELIVERY_SECONDS), exec_in_pod as stream:
            await claim
            await stream.send(line({"order": len(order)}))
            for at in range(0, len(order), CHUNK_BYTES):
                await stream.send(order[at : at + CHUNK_BYTES])
            answers = Answers(stream)
            answer = await answers.read()
            if not answer.get("stored"):
                raise NotBegun(f"the warm pod refused the order: {answer.get('refused', answer)}")
            go_sent = True
            await stream.send(line({"go": nonce}))
            answer = await answers.read()
            if not answer.get("begun"):
                raise NotBegun(f"the warm pod refused to begin: {answer.get('refused', answer)}")
    except NotBegun:
        raise
    except ClusterError as error:
        raise (Unclear if go_sent else NotBegun)(error.message) from error
    except TimeoutError as error:
        text = f"the warm pod did not answer within {DELIVERY_SECONDS:.0f} s"
        raise (Unclear if go_sent else NotBegun)(text) from error


async def ask_begun(client: Client, target: ContainerRef, seconds: float) -> bool:
    """Return whether the commands have begun. If not, they cannot begin any more.

    Raises:
        Unclear: the pod gave no answer within `seconds`.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        try:
            return await ask_once(client, target)
        except ClusterError as error:
            log.info("a warm pod did not answer", pod=target.pod, error=error.message)
            if loop.time() + QUESTION_PAUSE >= end:
                raise Unclear(f"it is unknown whether the commands have begun: {error.message}") from error
        await asyncio.sleep(QUESTION_PAUSE)


async def ask_once(client: Client, target: ContainerRef) -> bool:
    async with delivery_exec(client, target, QUESTION_SECONDS) as stream:
        await stream.send(line({"seal": True}))
        answer = await Answers(stream).read()
    if "begun" not in answer:
        raise ClusterError(f"the warm pod gave no answer: {answer.get('refused', answer)}")
    return bool(answer["begun"])


def line(message: Object) -> bytes:
    return json.dumps(message).encode() + b"\n"


class Answers:
    """Reads the answers of the helper. It lives as long as one exec."""

    def __init__(self, stream: ExecStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def read(self) -> Object:
        """Return the next answer.

        Raises:
            ClusterError: the exec ended, or an answer cannot be read.
        """
        while b"\n" not in self.buffer:
            if len(self.buffer) > MAX_ANSWER:
                raise ClusterError("the answer of the warm pod is too long")
            try:
                self.buffer += await anext(self.stream)
            except StopAsyncIteration:
                why = (
                    bytes(self.stream.stderr).decode("utf-8", "replace").strip()[-500:] or "it ended without an answer"
                )
                raise ClusterError(f"the exec in the warm pod failed: {why}") from None
        text, _, self.buffer = self.buffer.partition(b"\n")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ClusterError(f"the answer of the warm pod cannot be read: {text[:200]!r}")
        return found

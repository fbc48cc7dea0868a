"""Grants of the scheduler: the scheduler signs the requests with which pods reach the object store.

The `SchedulerIssuer` lives as long as the agent, which then needs no credentials for the store. Each collection of
files has a `SchedulerGrants`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import grpc
from grpc import aio

from agent.domain.errors import SchedulerError
from agent.objects.errors import StoreError
from agent.objects.grants import MAX_BATCH, StoredName
from agent.objects.store import COMPLETE_SECONDS, REQUEST_SECONDS, read_ca
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agent.domain.actions import Key
    from agent.objects.grants import Request, WantedObject
    from agent.protocol.wire.agent_pb2_grpc import SchedulerAsyncStub
    from agent.scheduler.stream.connection import Connection
    from agent.settings import ObjectSettings

    Metadata = tuple[tuple[str, str], ...]

Reply = TypeVar("Reply")

# Statuses of a call after which another try can succeed.
RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


class SchedulerIssuer:
    """Asks the scheduler for signed requests. `connection` is set when the application is complete."""

    def __init__(self, settings: ObjectSettings, agent_id: str) -> None:
        self.settings = settings
        self.agent_id = agent_id
        self.connection: Connection | None = None

    @property
    def ca(self) -> str:
        return read_ca(self.settings)

    def has(self, uri: str) -> bool:
        """Return whether `uri` names an object. The scheduler refuses objects that it does not know."""
        return bool(uri)

    def uploads(self, key: Key) -> SchedulerGrants:
        return SchedulerGrants(self, key)

    async def input_urls(self, key: Key, uris: Sequence[str]) -> list[str]:
        wanted = [wire.WantedObject(purpose=wire.INPUT, uri=uri) for uri in uris]
        return [grant.requests[0].url for grant in await self.grants(key, wanted, [1] * len(uris))]

    async def grants(
        self, key: Key, wanted: Sequence[wire.WantedObject], parts: Sequence[int]
    ) -> Sequence[wire.ObjectGrant]:
        """Return a grant for each object, with as many requests as the object has `parts`."""
        request = wire.GrantRequest(
            action_id=key.action_id, attempt=key.attempt, claim=key.claim, agent_id=self.agent_id, objects=wanted
        )
        reply = await self.call(lambda stub, metadata: stub.GrantObjects(request, metadata=metadata))
        if [len(grant.requests) for grant in reply.grants] != list(parts):
            raise StoreError("the scheduler did not sign what was asked")
        return reply.grants

    async def complete(self, key: Key, objects: Sequence[wire.CompletedObject]) -> list[str]:
        """Complete or abort uploads in parts. Returns the ETag of each object."""
        request = wire.CompleteRequest(
            action_id=key.action_id, attempt=key.attempt, claim=key.claim, agent_id=self.agent_id, objects=objects
        )
        reply = await self.call(
            lambda stub, metadata: stub.CompleteObjects(request, metadata=metadata), COMPLETE_SECONDS
        )
        if len(reply.etags) != len(objects):
            raise StoreError("the scheduler did not complete what was asked")
        return list(reply.etags)

    async def call(
        self, call: Callable[[SchedulerAsyncStub, Metadata], Awaitable[Reply]], seconds: float = REQUEST_SECONDS
    ) -> Reply:
        """Make a call and return its answer, which comes within `seconds`.

        Raises:
            StoreError: the scheduler refuses the call, or cannot reach the store.
            SchedulerError: the scheduler does not answer.
        """
        if self.connection is None:
            raise SchedulerError("there is no connection over which URLs are signed")
        try:
            return await self.connection.request(call, seconds)
        except aio.AioRpcError as error:
            text = f"the scheduler did not sign requests for the object store: {error.code().name}: {error.details()}"
            raise StoreError(text, retryable=error.code() in RETRYABLE) from error


class SchedulerGrants:
    """The grants of one collection of files. See `agent.objects.grants.Grants`.

    `granted` has the grants of the last batch by path and hash, because packs have no path. `uploads` has the uploads
    in parts that are not complete.
    """

    def __init__(self, issuer: SchedulerIssuer, key: Key) -> None:
        self.issuer = issuer
        self.key = key
        self.granted: dict[tuple[bytes, bytes], wire.ObjectGrant] = {}
        self.uploads: dict[bytes, str] = {}

    async def requests(self, batch: Sequence[WantedObject]) -> list[list[Request]]:
        wanted = [
            wire.WantedObject(
                purpose=wire.ARTIFACT,
                path=each.path,
                size=each.size,
                sha256=each.sha256,
                part_sha256=each.parts,
                upload=self.uploads.get(each.path, ""),
            )
            for each in batch
        ]
        grants = await self.issuer.grants(self.key, wanted, [len(each.parts) for each in batch])
        self.granted = {(each.path, each.sha256): grant for each, grant in zip(batch, grants, strict=True)}
        self.uploads |= {path: grant.upload for (path, _), grant in self.granted.items() if grant.upload}
        return [[{"url": each.url, "headers": dict(each.headers)} for each in grant.requests] for grant in grants]

    async def complete(self, wanted: WantedObject, etags: Sequence[str]) -> StoredName:
        grant = self.granted[wanted.path, wanted.sha256]
        if len(etags) != len(wanted.parts):
            raise StoreError(f"{grant.uri}: {len(etags)} of {len(wanted.parts)} parts were stored")
        if not grant.upload:
            return StoredName(grant.uri, etags[0])
        whole = wire.CompletedObject(path=wanted.path, upload=grant.upload, part_sha256=wanted.parts, etags=etags)
        (etag,) = await self.issuer.complete(self.key, [whole])
        del self.uploads[wanted.path]
        return StoredName(grant.uri, etag)

    async def abort(self) -> None:
        left = [wire.CompletedObject(path=path, upload=upload) for path, upload in self.uploads.items()]
        self.uploads.clear()
        try:
            for first in range(0, len(left), MAX_BATCH):
                await self.issuer.complete(self.key, left[first : first + MAX_BATCH])
        except (StoreError, SchedulerError):
            return

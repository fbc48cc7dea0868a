"""Sign requests for the object store, for agents without credentials of their own.

An `ObjectGrants` lives as long as the server and keeps no state of uploads: the agent sends the id of an upload with
each call. The names of objects contain the claim, so an agent can put only objects of its own claims. It can get only
the objects of the inputs of its actions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.errors import AgentError
from agent.local_scheduler.storage.inputs import inputs_of
from agent.local_scheduler.storage.uploads import UploadRefused, checked_path
from agent.objects.errors import StoreError
from agent.objects.grants import MAX_BATCH, MAX_PARTS, SHA256_BYTES, UploadGrants, WantedObject, object_folder
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.domain.actions import Key
    from agent.local_scheduler.records import ActionRecord
    from agent.objects.grants import Request
    from agent.objects.store import ObjectStore

# The part of the names of objects that stands for the pool, if the scheduler signs.
POOL = "scheduler"


class StoreAway(AgentError):
    """The object store does not answer. Another try can succeed."""


class StoreRefuses(AgentError):
    """The object store refuses a request, or the scheduler signs no URLs."""


class ObjectGrants:
    """Signs requests for the sessions of all agents. `store` is None if the scheduler signs nothing."""

    def __init__(self, store: ObjectStore | None) -> None:
        self.store = store if store is not None and store.settings.issuer == "scheduler" else None

    def names_of(self, key: Key) -> str:
        """Return the start of the names of the objects that an attempt may store, "" for any name."""
        return f"{self.store.uri(self.folder(self.store, key))}/" if self.store is not None else ""

    def folder(self, store: ObjectStore, key: Key) -> str:
        return object_folder(store.settings.prefix, POOL, key)

    def signing_store(self) -> ObjectStore:
        if self.store is None:
            raise StoreRefuses("this scheduler signs no URLs: start it with --objects and `objects.issuer: scheduler`")
        return self.store

    async def grant(self, record: ActionRecord, key: Key, objects: Sequence[wire.WantedObject]) -> wire.GrantReply:
        """Return the signed requests for objects of a session.

        Raises:
            UploadRefused: the request breaks the contract.
            StoreAway, StoreRefuses: the store does not begin an upload in parts.
        """
        store = self.signing_store()
        check_number(objects)
        try:
            grants = UploadGrants(store, self.folder(store, key))
            return wire.GrantReply(grants=[await self.grant_one(record, grants, each) for each in objects])
        except StoreError as error:
            raise refusal(error) from error

    async def grant_one(self, record: ActionRecord, grants: UploadGrants, each: wire.WantedObject) -> wire.ObjectGrant:
        match each.purpose:
            case wire.ARTIFACT:
                wanted = wanted_object(each, grants.store.settings.max_file_size)
                name = grants.name(wanted)
                if each.upload:
                    grants.uploads[name] = each.upload
                (requests,) = await grants.requests([wanted])
                upload = grants.uploads.get(name, "")
                return wire.ObjectGrant(requests=map(signed, requests), upload=upload, uri=grants.store.uri(name))
            case wire.INPUT:
                if not any(file.uri == each.uri for source in inputs_of(record) for file in source.files if file.uri):
                    raise UploadRefused(f"{each.uri[:200]!r} is no input of {record.plan.name}")
                store = grants.store
                url = store.sign(await store.credentials(), "GET", store.key_of(each.uri))
                return wire.ObjectGrant(requests=[wire.SignedRequest(url=url)], uri=each.uri)
        raise UploadRefused("purpose: must be ARTIFACT or INPUT")

    async def complete(self, key: Key, objects: Sequence[wire.CompletedObject]) -> wire.CompleteReply:
        """Complete or abort uploads in parts of a session.

        Raises:
            UploadRefused: the request breaks the contract.
            StoreAway, StoreRefuses: the store does not join the parts.
        """
        store = self.signing_store()
        check_number(objects)
        grants, etags = UploadGrants(store, self.folder(store, key)), []
        try:
            for each in objects:
                checked_path(each.path)
                wanted = WantedObject(each.path, 0, 0, b"", tuple(each.part_sha256))
                if each.etags:
                    grants.uploads[grants.name(wanted)] = each.upload
                    etags.append((await grants.complete(wanted, each.etags)).etag)
                else:
                    await store.abort_upload(grants.name(wanted), each.upload)
                    etags.append("")
        except StoreError as error:
            raise refusal(error) from error
        return wire.CompleteReply(etags=etags)


def check_number(objects: Sequence[object]) -> None:
    if len(objects) > MAX_BATCH:
        raise UploadRefused(f"objects: {len(objects)} are too many; at most {MAX_BATCH}")


def wanted_object(each: wire.WantedObject, max_size: int) -> WantedObject:
    """Return the file or the pack that an agent wants to put. Agents are not trusted.

    Raises:
        UploadRefused: a path, a size or a hash is not allowed.
    """
    if each.path:
        checked_path(each.path)
    parts = tuple(each.part_sha256)
    if not 0 < len(parts) <= MAX_PARTS or any(len(digest) != SHA256_BYTES for digest in (*parts, each.sha256)):
        raise UploadRefused(f"{each.path!r}: each part and the file need a sha256, and at most {MAX_PARTS} parts")
    if not each.path and len(parts) > 1:
        raise UploadRefused("a pack, which has no path, is put whole")
    if each.size > max_size:
        raise UploadRefused(f"{each.path!r} has {each.size} bytes; at most {max_size}")
    return WantedObject(each.path, 0, each.size, each.sha256, parts)


def signed(request: Request) -> wire.SignedRequest:
    headers = request["headers"]
    return wire.SignedRequest(url=str(request["url"]), headers=headers if isinstance(headers, dict) else {})


def refusal(error: StoreError) -> StoreAway | StoreRefuses:
    return StoreAway(error.message) if error.retryable else StoreRefuses(error.message)

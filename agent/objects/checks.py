"""The object store's part of `sealci-agent doctor`: put, read and delete an object as an agent would.

The checks live for one run of the doctor. The object that they create has a name of its own and is deleted.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

from agent.domain.check_result import failed, ok, skipped, warning
from agent.objects.cache import CacheStore
from agent.objects.cache_entries import Archive, Place, version_of
from agent.objects.errors import StoreError
from agent.objects.store import ObjectStore, checksum_header

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from agent.domain.check_result import Finding
    from agent.settings import ObjectSettings

CHECK = "object store"
CONTENT = b"sealci-agent doctor\n"
FORBIDDEN = 403


async def check_store(settings: ObjectSettings, sign_key_file: Path | None = None) -> AsyncGenerator[Finding]:
    """Yield the findings about the store, and about the cache in it if there is a key that signs its entries."""
    if settings.issuer == "none":
        yield skipped(CHECK, "objects.issuer is none, so files go through the scheduler")
        return
    if settings.issuer == "scheduler":
        yield skipped(CHECK, "objects.issuer is scheduler, so only the scheduler has credentials for the store")
        return
    store = ObjectStore(settings)
    key = f"{settings.prefix}/doctor/{secrets.token_hex(8)}"
    try:
        await store.put(key, CONTENT)
        if await store.get(key) != CONTENT:
            yield failed(CHECK, f"{store.uri(key)} has another content than what was put", "check the store")
            return
        public = await store.is_public(key)
        checked = await refuses_other_bytes(store, key)
        await store.delete(key)
        yield ok(CHECK, f"an object was put, read and deleted in {settings.bucket} at {settings.endpoint}")
        if public:
            yield warning(f"{CHECK}: access", "everyone can read the bucket", "make the bucket private")
        if not checked:
            detail = "the store takes other bytes than those that a signed checksum names"
            yield warning(f"{CHECK}: checksum", detail, "the agent still checks each file when it is used")
        yield await check_lifecycle(store)
        if sign_key_file is not None:
            yield await check_cache(store, sign_key_file)
    except StoreError as error:
        yield failed(CHECK, error.message, "check objects.*, the credentials, their rights, and the bucket")


async def check_cache(store: ObjectStore, sign_key_file: Path) -> Finding:
    """Store, find, list and delete an entry of the cache."""
    check = "cache"
    cache = CacheStore(store, sign_key_file)
    place = Place("doctor", f"doctor-{secrets.token_hex(8)}", version_of(()))
    archive = Archive(place.scope, "0" * 64, 0)
    try:
        await cache.add(place, archive)
        found = await cache.find(place)
        listed = await cache.find_newest(place.scope, place.key, place.version)
        await cache.drop(place)
    except StoreError as error:
        return failed(check, error.message, "check caches.sign_key_file, and the rights to list and delete objects")
    if found != archive or listed != (place.key, archive):
        return failed(check, "an entry that was stored is not found again", "check whether the store lists new objects")
    return ok(check, "an entry was stored, found, listed and deleted")


async def refuses_other_bytes(store: ObjectStore, key: str) -> bool:
    """Return whether the store refuses bytes that differ from a signed checksum."""
    try:
        await store.request("PUT", key, headers=checksum_header(hashlib.sha256(b"other").digest()), body=CONTENT)
    except StoreError as error:
        if error.retryable:
            raise
        return True
    return False


async def check_lifecycle(store: ObjectStore) -> Finding:
    """Return whether the store deletes old objects by itself. Neither the agent nor the scheduler deletes objects."""
    check, advice = f"{CHECK}: lifecycle", "add a lifecycle rule that expires objects and aborts incomplete uploads"
    try:
        _, rules = await store.request("GET", query={"lifecycle": ""})
    except StoreError as error:
        if error.retryable:
            raise
        why = "hides its rules" if error.status == FORBIDDEN else "has no lifecycle rule"
        return warning(check, f"the bucket {why}, so old objects may stay for ever", advice)
    lacking = [name for name in ("Expiration", "AbortIncompleteMultipartUpload") if name.encode() not in rules]
    if lacking:
        return warning(check, f"the bucket's lifecycle rules lack {' and '.join(lacking)}", advice)
    return ok(check, "old objects expire")

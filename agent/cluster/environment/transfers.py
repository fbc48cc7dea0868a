"""The files that an environment exchanges with its pod: artifacts out, inputs in, caches in both directions.

`FileTransfers` is a part of `PodEnvironment`. Each transfer is one exec in container `helper`. With an object store,
the helper moves the bytes itself, and the exec carries signed URLs.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, aclosing
from typing import TYPE_CHECKING

from agent.cluster.api.container_ref import ContainerRef
from agent.cluster.api.exec import ExecStream
from agent.cluster.artifacts import collect, deliver, objects
from agent.cluster.artifacts.archive_reader import ArchiveLimits
from agent.cluster.artifacts.caches import CacheRequest, StoreConversation, conversation_results
from agent.cluster.artifacts.claim_caches import ClaimConversation
from agent.cluster.pod import manifest
from agent.cluster.pod.fields import helper_status
from agent.domain.artifacts import InputFile
from agent.objects.cache import CacheStore
from agent.objects.grants import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from agent.cluster.api.client import Client
    from agent.cluster.artifacts.caches import CacheConversation
    from agent.cluster.environment.context import Context
    from agent.cluster.environment.watch import PodState
    from agent.domain.actions import ArtifactRules, Cache, CacheScope, Key
    from agent.domain.artifacts import FileData, FilePart
    from agent.domain.events import CacheResult
    from agent.domain.observations import Collected
    from agent.objects.grants import Issuer

# Maximum number of files of one action in the object store.
MAX_OBJECTS = 100_000
# Seconds that an exec for caches may last longer than its program, so that the program reports its end itself.
CACHE_MARGIN = 10.0


class FileTransfers:
    """The methods of `PodEnvironment` that move files. `PodEnvironment` sets the attributes."""

    client: Client
    context: Context
    plan: manifest.Plan
    pod_state: PodState

    @property
    def helper_container(self) -> ContainerRef:
        helper = helper_status((self.pod_state.pod or {}).get("status", {})) or {"name": manifest.HELPER}
        return ContainerRef(self.plan.namespace, self.plan.name, helper["name"])

    @property
    def workspace(self) -> str:
        return self.context.settings.environment.workspace

    @property
    def has_object_store(self) -> bool:
        """Return whether the pod can put files into an object store."""
        return self.context.issuer is not None

    def has_object(self, uri: str) -> bool:
        """Return whether the pod can read this file of an object store."""
        return self.context.issuer is not None and self.context.issuer.has(uri)

    def copy_turn(self) -> AbstractAsyncContextManager[None]:
        return self.context.copies

    async def files(
        self, rules: ArtifactRules, seconds: float, *, objects: bool = False, packs: bool = False
    ) -> AsyncGenerator[FilePart | Collected, None]:
        """Copy the files that match `rules` out of the pod, within `seconds`. The last item is `Collected`."""
        issuer = self.context.issuer
        if objects and issuer is not None:
            items = self.stored(issuer, rules, seconds, packs=packs)
        else:
            items = self.copied(rules, seconds)
        async with aclosing(items):
            async for item in items:
                yield item

    def copied(self, rules: ArtifactRules, seconds: float) -> AsyncGenerator[FilePart | Collected, None]:
        """Copy files through the API server."""

        def open_exec(argv: list[str], seconds: float) -> ExecStream:
            return ExecStream(self.client, self.helper_container, argv, seconds=seconds)

        limits = ArchiveLimits.of(self.context.settings.artifacts, seconds)
        return collect.collect(open_exec, rules, limits, workspace=self.workspace)

    def stored(
        self, issuer: Issuer, rules: ArtifactRules, seconds: float, *, packs: bool
    ) -> AsyncGenerator[FilePart | Collected, None]:
        """Let the pod put files into the object store."""
        settings = self.context.settings
        limits = ArchiveLimits(
            files=MAX_OBJECTS,
            file_bytes=settings.objects.max_file_size,
            total_bytes=settings.objects.max_total_size,
            seconds=seconds,
        )
        argv = objects.objects_command(rules, limits, workspace=self.workspace, packs=packs)
        stream = ExecStream(self.client, self.helper_container, argv, seconds=seconds, stdin=True)
        return objects.collect_objects(stream, issuer.uploads(self.plan.action.key), limits, issuer.ca)

    async def receive_inputs(self, items: AsyncIterator[InputFile | FileData], seconds: float) -> None:
        """Copy files into the workspace within `seconds`, then let the commands start."""
        gated = bool(self.plan.action.services)
        argv = deliver.deliver_command(self.workspace, manifest.GO, snapshot=self.plan.wants_snapshot, gated=gated)
        stream = ExecStream(self.client, self.helper_container, argv, seconds=seconds, stdin=True)
        if (issuer := self.context.issuer) is None:
            await deliver.deliver(stream, items)
            return
        async with aclosing(with_urls(issuer, self.plan.action.key, items)) as signed:
            await deliver.deliver(stream, signed, issuer.ca)

    # ---- caches

    @property
    def cache_trouble(self) -> str:
        """Return why caches cannot be used now, "" if they can."""
        if self.context.cache is None:
            return "this agent has no cache (setting caches.store)"
        if self.context.settings.policy.cache == "off":
            return "policy.cache of this agent is off"
        if self.context.cache.breaker.is_open:
            return "the store of caches has failed for several actions, so caches are not used for a minute"
        return ""

    def restore_caches(self, caches: tuple[Cache, ...], scope: CacheScope) -> AsyncGenerator[CacheResult, None]:
        """Restore caches into the workspace before the commands. Yields one result for each."""
        request = self.cache_request(caches, scope, self.context.settings.caches.restore_timeout)
        return self.run_cache_errand("restore", request)

    def save_caches(
        self, caches: tuple[Cache, ...], scope: CacheScope, *, succeeded: bool
    ) -> AsyncGenerator[CacheResult, None]:
        """Save the caches that were not restored from their own key. Yields one result for each that was tried."""
        request = self.cache_request(caches, scope, self.context.settings.caches.save_timeout)
        return self.run_cache_errand("save", request, succeeded=succeeded)

    def cache_request(self, caches: tuple[Cache, ...], scope: CacheScope, seconds: float) -> CacheRequest:
        settings, writes = self.context.settings, self.context.settings.policy.cache == "read-write"
        return CacheRequest(caches, scope, self.image, seconds, settings.caches.max_size, writes, self.show_cache)

    def show_cache(self, key: str, done: int, size: int) -> None:
        """Show the progress of an archive to the person at the terminal of `run`, if there is one."""
        if self.context.debug is not None:
            self.context.debug.show_moved(self.plan.action.key.action_id, f"cache {key}", done, size)

    @property
    def image(self) -> str:
        """Return the image of container `action`. The agent knows the action of an adopted pod only in part."""
        containers = (self.pod_state.pod or {}).get("spec", {}).get("containers", ())
        found = [each["image"] for each in containers if each["name"] == manifest.ACTION]
        return found[0] if found else self.plan.action.image

    async def run_cache_errand(
        self, word: str, request: CacheRequest, *, succeeded: bool | None = None
    ) -> AsyncGenerator[CacheResult, None]:
        if (cache := self.context.cache) is None:
            return
        argv, seconds = request.command(word, self.workspace), request.seconds + CACHE_MARGIN
        stream = ExecStream(self.client, self.helper_container, argv, seconds=seconds, stdin=True)
        conversation: CacheConversation = (
            StoreConversation(stream, cache, request, cache.store.ca)
            if isinstance(cache, CacheStore)
            else ClaimConversation(stream, cache, request)
        )
        try:
            async with aclosing(conversation_results(conversation, succeeded=succeeded)) as results:
                async for result in results:
                    self.show_cache("", 0, 0)
                    yield result
        finally:
            self.show_cache("", 0, 0)


async def with_urls(
    issuer: Issuer, key: Key, items: AsyncIterator[InputFile | FileData]
) -> AsyncGenerator[InputFile | FileData | deliver.ObjectFiles, None]:
    """Yield the items that the scheduler sends, and then the files of each object of the store, with a signed URL.

    Some URLs are signed at a time, so that they are fresh when the pod uses them.

    Raises:
        StoreError: there are no credentials, or the objects are no inputs of the attempt.
        SchedulerError: the scheduler does not answer.
    """
    objects: dict[str, list[InputFile]] = {}
    async for item in items:
        if isinstance(item, InputFile) and item.uri:
            objects.setdefault(item.uri, []).append(item)
        else:
            yield item
    uris = list(objects)
    for first in range(0, len(uris), MAX_BATCH):
        batch = uris[first : first + MAX_BATCH]
        for uri, url in zip(batch, await issuer.input_urls(key, batch), strict=True):
            yield deliver.ObjectFiles(url, tuple(objects[uri]))

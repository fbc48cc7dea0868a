"""Translation of the caches of an action, of their scope, and of what happened to them."""

from __future__ import annotations

from agent.domain import actions as domain
from agent.domain import events
from agent.domain.references.cache_key import MAX_KEY
from agent.protocol.translate.fields import CACHE_KINDS, CACHE_SAVES, duration, human_text, invalid, member, seconds
from agent.protocol.wire import agent_pb2 as wire

# Maximum number of scopes that an action may read, and of characters of a scope.
MAX_SCOPES = 10
MAX_SCOPE = 8192


# ---- functions for the agent, which reads caches and writes results


def cache(message: wire.Cache, number: int) -> domain.Cache:
    """Return a cache of an action. `number` is its position in the action, from 1, for messages.

    Raises:
        ActionFailed: a field is invalid. The message of the error names the field and the allowed values.
    """
    save = domain.When.SUCCESS
    if message.save != wire.Cache.SAVE_UNSPECIFIED:
        save = member(f"caches[{number}].save", message.save, CACHE_SAVES)
    return domain.Cache(message.key, tuple(message.paths), tuple(message.fallback_keys), message.prefix, save)


def cache_scope(message: wire.CacheScope) -> domain.CacheScope:
    """Return the scope of an action's caches.

    Raises:
        ActionFailed: what the action writes is not the first of what it reads, or there are too many names.
    """
    if len(message.read) > MAX_SCOPES or any(len(each) > MAX_SCOPE for each in (message.write, *message.read)):
        invalid("cache_scope", "a list that is too long", f"at most {MAX_SCOPES} names of {MAX_SCOPE} characters")
    if message.write and (not message.read or message.read[0] != message.write):
        invalid("cache_scope.read", f"a list that does not begin with {message.write[:100]!r}", "`write` as the first")
    return domain.CacheScope(message.write, tuple(message.read))


def cache_result_message(event: events.CacheResult) -> wire.CacheResult:
    return wire.CacheResult(
        key=human_text(event.key)[: 2 * MAX_KEY],
        kind=CACHE_KINDS[event.kind],
        used_key=human_text(event.used_key)[: 2 * MAX_KEY],
        bytes=event.bytes,
        duration=duration(event.seconds),
        message=human_text(event.message),
    )


# ---- functions for a scheduler, which writes caches and reads results


def cache_message(value: domain.Cache) -> wire.Cache:
    return wire.Cache(
        key=value.key,
        fallback_keys=value.fallback_keys,
        prefix=value.prefix,
        paths=value.paths,
        save=CACHE_SAVES[value.save],
    )


def cache_scope_message(value: domain.CacheScope) -> wire.CacheScope:
    return wire.CacheScope(write=value.write, read=value.read)


def cache_result(message: wire.CacheResult) -> events.CacheResult:
    """Return what happened to a cache.

    Raises:
        ActionFailed: the kind is unknown.
    """
    return events.CacheResult(
        key=message.key,
        kind=member("cache.kind", message.kind, CACHE_KINDS),
        used_key=message.used_key,
        bytes=message.bytes,
        seconds=seconds(message.duration),
        message=message.message,
    )

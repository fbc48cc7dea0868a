"""The key `cache` of an action in a pipeline file, and the scopes that the local scheduler gives to caches. Pure.

Each function that reads a key raises `PipelineFileError` with the line and the key of a value that is not allowed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from agent.domain.actions import MAX_CACHE_CHARACTERS, MAX_CACHE_ITEMS, MAX_CACHES, Cache, CacheScope, When
from agent.domain.paths import check_cache_path
from agent.domain.references.cache_key import check_template

if TYPE_CHECKING:
    from agent.domain.actions import Repository
    from agent.pipeline.yaml_document import Value

CACHE_KEYS = ("key", "paths", "fallbacks", "prefix", "save")
SAVES = (When.SUCCESS, When.ALWAYS, When.NEVER)
# Refs of the branch that all others may read. An empty ref is the server's HEAD.
MAIN_REFS = frozenset({"", "HEAD", "main", "master"})
BRANCH = re.compile(r"^(refs/heads/|refs/remotes/origin/|origin/)")


def read_caches(value: Value) -> tuple[Cache, ...]:
    """Return the caches of an action."""
    items = value.items(f"a list of mappings with {', '.join(CACHE_KEYS)}")
    if len(items) > MAX_CACHES:
        value.refuse(f"has {len(items)} caches; at most {MAX_CACHES} are allowed")
    caches = tuple(read_cache(item) for item in items)
    paths = [path for each in caches for path in each.paths]
    if len(paths) > MAX_CACHE_ITEMS:
        value.refuse(f"has {len(paths)} paths; at most {MAX_CACHE_ITEMS} are allowed")
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        value.refuse(f"names {twice[0]} twice")
    return caches


def read_cache(value: Value) -> Cache:
    keys = value.mapping(f"a mapping with {', '.join(CACHE_KEYS)}", CACHE_KEYS)
    for required in ("key", "paths"):
        if required not in keys:
            value.refuse_missing(f"`{required}` is missing")
    paths = tuple(read_path(item) for item in keys["paths"].items("a list of paths"))
    if not paths:
        keys["paths"].refuse("must name at least one path")
    fallbacks = keys["fallbacks"].items("a list of keys") if "fallbacks" in keys else []
    if len(fallbacks) > MAX_CACHE_ITEMS:
        keys["fallbacks"].refuse(f"has {len(fallbacks)} keys; at most {MAX_CACHE_ITEMS} are allowed")
    save = keys["save"].choice(each.value for each in SAVES) if "save" in keys else When.SUCCESS.value
    return Cache(
        key=read_template(keys["key"]),
        paths=paths,
        fallback_keys=tuple(read_template(item) for item in fallbacks),
        prefix=read_template(keys["prefix"]) if "prefix" in keys else "",
        save=When(save),
    )


def read_template(value: Value) -> str:
    """Return a key with its placeholders."""
    text = value.non_empty("a key")
    if len(text) > MAX_CACHE_CHARACTERS:
        value.refuse(f"must have at most {MAX_CACHE_CHARACTERS} characters, not {len(text)}")
    try:
        check_template(text)
    except ValueError as error:
        value.refuse(str(error))
    return text


def read_path(value: Value) -> str:
    text = value.non_empty("a path").removesuffix("/")
    try:
        check_cache_path(text)
    except ValueError as error:
        value.refuse(str(error))
    return text


def cache_scope(repository: Repository | None, pipeline: str) -> CacheScope:
    """Return the scope of the caches of an action that clones `repository`.

    The main branch writes what all refs of the repository read. Any other ref, such as that of a pull request, writes
    only for itself. Actions without a repository share the caches of their pipeline's name.
    """
    if repository is None:
        name = json.dumps(["pipeline", pipeline])
        return CacheScope(name, (name,))
    ref, main = BRANCH.sub("", repository.ref), json.dumps(["repository", repository.url])
    if ref in MAIN_REFS:
        return CacheScope(main, (main,))
    # JSON keeps a URL and a ref apart, whatever they contain.
    own = json.dumps(["repository", repository.url, ref])
    return CacheScope(own, (own, main))

"""The checks that an action and its services share: images, variables, resources. Pure.

Each function yields one text per problem. The text names the field, its value and what is allowed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent.domain.actions import MAX_CACHE_CHARACTERS, MAX_CACHE_ITEMS, MAX_CACHES
from agent.domain.paths import check_cache_path
from agent.domain.quantities import quantity, resource_quantity
from agent.domain.references.cache_key import check_template
from agent.domain.references.image_reference import checked_image, image_matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.domain.actions import Action, Resources

# Maximum number of bytes in one variable's name and value. Linux limits a variable of a program to 128 KiB, with an
# equals sign and a NUL. On its way to the commands, the name of a secret has a prefix of 14 bytes.
MAX_VARIABLE_BYTES = 128 * 1024 - 16
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DIGEST = re.compile(r"[^@]@sha256:[0-9a-f]{64}\Z")


def image_problems(field: str, image: str, allowed: Sequence[str], *, require_digest: bool) -> Iterator[str]:
    """Yield a problem if no pattern of the policy allows the image, or if the policy requires a digest."""
    if not image:
        yield f"{field}: is missing"
    elif len(image) > 512 or re.search(r"\s", image):
        yield f"{field}: {image[:100]!r} is not an image reference"
    elif not any(image_matches(image, each) for each in allowed):
        yield f"{field}: {image!r} is not allowed; allowed: {', '.join(allowed)}"
    else:
        try:
            checked_image(image)
        except ValueError as error:
            yield f"{field}: {image!r} is not an image reference: {error}"
    if image and require_digest and not DIGEST.search(image):
        yield f"{field}: {image[:512]!r} has no digest, and the policy wants one: NAME@sha256:..."


def variable_problems(field: str, values: Mapping[str, str]) -> Iterator[str]:
    """Yield the problems of variables. No problem contains a value."""
    for name, value in values.items():
        if not VARIABLE.fullmatch(name) or len(name) > 253:
            yield f"{field}: {name[:100]!r} is not a variable name; allowed: letters, digits and _, no digit first"
        if "\0" in value:
            yield f"{field}: the value of {name[:100]!r} holds a NUL byte"
        if (one := len(name) + len(value.encode())) > MAX_VARIABLE_BYTES:
            yield (
                f"{field}: {name[:100]!r} has {one} bytes with its value; at most {MAX_VARIABLE_BYTES}, "
                "because Linux starts no program with a longer variable"
            )


def cache_problems(action: Action) -> Iterator[str]:
    """Yield the problems of the caches: their number, their keys and their paths."""
    caches = action.caches
    paths = sum(len(each.paths) for each in caches)
    keys = max((len(each.fallback_keys) for each in caches), default=0)
    if len(caches) > MAX_CACHES or paths > MAX_CACHE_ITEMS or keys > MAX_CACHE_ITEMS:
        yield (
            f"caches: {len(caches)} caches with {paths} paths and up to {keys} fallback keys are too many; "
            f"at most {MAX_CACHES}, {MAX_CACHE_ITEMS} and {MAX_CACHE_ITEMS}"
        )
        return
    for number, each in enumerate(caches, 1):
        checks = [("key", each.key, check_template), *(("paths", path, check_cache_path) for path in each.paths)]
        checks += [("fallback_keys", key, check_template) for key in each.fallback_keys]
        checks += [("prefix", each.prefix, check_template)] if each.prefix else []
        if not each.paths:
            yield f"caches[{number}].paths: at least one is needed"
        for field, text, check in checks:
            if len(text) > MAX_CACHE_CHARACTERS:
                yield f"caches[{number}].{field}: has {len(text)} characters; at most {MAX_CACHE_CHARACTERS}"
                continue
            try:
                check(text)
            except ValueError as error:
                yield f"caches[{number}].{field}: {error}"


def resource_problems(
    field: str, asked: Resources, max_cpu: str, max_memory: str, max_ephemeral_storage: str
) -> Iterator[str]:
    """Yield a problem for each requested quantity below the smallest usable one or above its maximum ("": none)."""
    pairs = (
        ("cpu", asked.cpu, max_cpu),
        ("memory", asked.memory, max_memory),
        ("ephemeral_storage", asked.ephemeral_storage, max_ephemeral_storage),
    )
    for name, value, maximum in pairs:
        if not value:
            continue
        try:
            number = resource_quantity(name.replace("_", "-"), value)
        except ValueError as error:
            yield f"{field}.{name}: {error}"
            continue
        if maximum and number > quantity(maximum):
            yield f"{field}.{name}: {value} is over the maximum of {maximum}"

"""The values of the secrets that a pipeline file names: looked up where it is submitted, once, before anything starts.

A value is never part of a message. The server keeps the values of a pipeline in a file of their own until it has ended,
so that no page of its database ever holds one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.errors import AgentError
from agent.pipeline.parser import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class SecretsError(AgentError):
    """A secret that the file names has no value."""


def find_secrets(names: Sequence[str], environ: Mapping[str, str], file: Path | None = None) -> dict[str, str]:
    """Return the values of secrets, from a file of NAME=VALUE lines first and the environment second.

    Raises:
        SecretsError: one has no value, or the file is wrong; no value is ever part of the message.
    """
    known = dict(environ)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SecretsError(f"the file of secrets {file} cannot be read: {type(error).__name__}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, separator, value = line.partition("=")
            if not separator or not VARIABLE.fullmatch(name.strip()):
                raise SecretsError(f"{file}:{number}: is not NAME=VALUE")
            known[name.strip()] = value
    missing = [name for name in names if name not in known]
    if missing:
        raise SecretsError(f"no value for the secrets {', '.join(missing)}: set them in the environment or in a file")
    return {name: known[name] for name in names}

"""Look up the values of the secrets that a pipeline file names.

`run` and `submit` look them up once, before an action starts. No error message contains a value. The scheduler keeps
the values in one file per pipeline until the pipeline has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.errors import AgentError
from agent.pipeline.action_keys import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class SecretsError(AgentError):
    """A secret has no value, or the file of secrets is not valid."""


def find_secrets(names: Sequence[str], environ: Mapping[str, str], file: Path | None = None) -> dict[str, str]:
    """Return the values of secrets by name. A line NAME=VALUE of `file` wins over a variable of `environ`.

    Raises:
        SecretsError: a secret has no value, or the file is not valid. The message contains no value.
    """
    values = dict(environ)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            # The text of a UnicodeDecodeError would show bytes of the file, so the message contains only the type of
            # the error.
            raise SecretsError(f"the file of secrets {file} cannot be read: {type(error).__name__}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, separator, value = line.partition("=")
            if not separator or not VARIABLE.fullmatch(name.strip()):
                raise SecretsError(f"{file}:{number}: is not NAME=VALUE")
            values[name.strip()] = value
    missing = [name for name in names if name not in values]
    if missing:
        raise SecretsError(f"no value for the secrets {', '.join(missing)}: set them in the environment or in a file")
    return {name: values[name] for name in names}

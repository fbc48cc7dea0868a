"""Look up the values of the secrets that a pipeline file names.

`run` and `submit` look them up once, before an action starts. No error message contains a value. The scheduler keeps
the values in one file per pipeline until the pipeline has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.errors import AgentError
from agent.pipeline.action_keys import VARIABLE
from agent.pipeline.yaml_document import SURROGATE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HINT = "a variable holds text only; encode the value, for example with base64"
# Maximum number of bytes of a secrets file. It is larger than a Secret of Kubernetes (1 MiB), because one file may hold
# the secrets of several actions.
MAX_FILE = 4 << 20
MAX_VALUES = 1 << 20


class SecretsError(AgentError):
    """A secret has no value or a value that is not UTF-8, the values are too large, or the secrets file is invalid."""


def find_secrets(names: Sequence[str], environ: Mapping[str, str], file: Path | None = None) -> dict[str, str]:
    """Return the values of secrets by name. A line NAME=VALUE of `file` overrides a variable of `environ`.

    Raises:
        SecretsError: a secret has no value, or the file is not valid. The message contains no value.
    """
    values = dict(environ)
    if file is not None:
        values |= read_secrets_file(file)
    missing = [name for name in names if name not in values]
    if missing:
        listed = ", ".join(missing)
        raise SecretsError(f"no value for the secrets {listed}: set them in the environment or in a --secrets-file")
    found = {name: values[name] for name in names}
    total = 0
    for name, value in found.items():
        total += len(value.encode("utf-8", "surrogatepass"))
        # Python hands over bytes of the environment that are not UTF-8 as halves of surrogate pairs, which no encoder
        # accepts.
        if SURROGATE.search(value):
            raise SecretsError(f"the secret {name} is not UTF-8 text in the environment: {HINT}")
    if total > MAX_VALUES:
        raise SecretsError(f"the values of the secrets have {total} bytes; at most {MAX_VALUES} are allowed")
    return found


def read_secrets_file(file: Path) -> dict[str, str]:
    """Return the values of a file of NAME=VALUE lines. A byte order mark is skipped.

    Raises:
        SecretsError: the file cannot be read, or a line is not valid. The message contains no value.
    """
    try:
        with file.open("rb") as opened:
            # The read is bounded, because a device such as /dev/zero has no end.
            data = opened.read(MAX_FILE + 1)
    except OSError as error:
        raise SecretsError(f"the file of secrets {file} cannot be read: {type(error).__name__}") from error
    if len(data) > MAX_FILE:
        raise SecretsError(f"the file of secrets {file} has more than {MAX_FILE} bytes")
    values: dict[str, str] = {}
    # Only a newline ends a line. `splitlines` would cut a value at U+2028 or a form feed.
    for number, line in enumerate(data.removeprefix(BYTE_ORDER_MARK).split(b"\n"), 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        raw_name, separator, raw_value = line.removesuffix(b"\r").partition(b"=")
        name = raw_name.decode("ascii", "replace").strip()
        if not separator or not VARIABLE.fullmatch(name):
            raise SecretsError(f"{file}:{number}: is not NAME=VALUE")
        try:
            values[name] = raw_value.decode("utf-8")
        except UnicodeDecodeError:
            # The error of `decode` is not chained (`from None`), because its text would show bytes of the value.
            raise SecretsError(f"{file}:{number}: the value of {name} is not UTF-8 text: {HINT}") from None
        if "\0" in values[name]:
            raise SecretsError(f"{file}:{number}: the value of {name} contains a NUL character: {HINT}")
    return values

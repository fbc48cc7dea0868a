"""Check the name of a Secret that an action or a setting gives for cloning. Pure functions."""

from __future__ import annotations

import re

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
# Pattern of the names of the Secrets that agents create for the secrets of actions (`agent.cluster.pod.labels`).
OF_AN_ACTION = re.compile(r"sealci-(?:[-a-z0-9]+-)?[0-9a-f]{12}(?:-[0-9a-f]{16})?")


def checked_secret_name(name: str) -> str:
    """Return the name unchanged.

    Raises:
        ValueError: the text is not the name of a Secret, or has the form of a Secret that an agent makes.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name[:100]!r} is not the name of a Secret")
    if OF_AN_ACTION.fullmatch(name):
        raise ValueError(f"{name!r} has the form of a Secret that belongs to an action")
    return name

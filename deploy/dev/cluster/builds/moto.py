"""Install moto, which plays the token service of AWS in tests, into a virtual environment of its own.

moto cannot share the environment of the agent, because botocore and the client of Kubernetes need different versions of
dateutil. `make lock` pins what is installed, in `moto.lock`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from deploy.dev.cluster.console import run, step
from deploy.dev.cluster.locks import lock
from deploy.dev.cluster.settings import Settings

PINS = Path(__file__).parent / "moto.lock"


def python(settings: Settings) -> Path:
    """Return the Python that has moto and botocore. The first call installs them."""
    folder = settings.cache / f"moto-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"
    found, done = folder / "bin" / "python", folder / ".done"
    with lock(settings.cache / "moto.lock", "another installation of moto"):
        if not done.exists():
            with step("install moto"):
                run([sys.executable, "-m", "venv", "--clear", str(folder)], seconds=120)
                options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"]
                run([str(found), "-m", "pip", "install", *options, "-r", str(PINS)], seconds=600)
                done.touch()
    return found

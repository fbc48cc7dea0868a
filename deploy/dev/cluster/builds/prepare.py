"""Prepare everything that `make demo` needs, before the cluster starts: binaries, images and the virtual environment.

Two sequences of jobs ("lanes") run in parallel. One lane compiles. The other lane installs, downloads and builds
images, and often waits for the network and the disk. A job whose result is in the cache ends at once. Programs and
images that only tests need, such as kind and kwok, are not built here.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from deploy.dev.cluster.builds import debian, go_build, image_builders, images
from deploy.dev.cluster.console import run_logged, step
from deploy.dev.cluster.progress import Job, Lanes
from deploy.dev.cluster.settings import REPOSITORY, Settings

PACKAGES = "Debian packages"


def prepare(settings: Settings) -> None:
    """Run all jobs. Raise CommandFailed if one fails."""
    lanes = [compiler_lane(settings), other_lane(settings)]
    Lanes(lanes, settings.cache / "durations.json").run()


def compiler_lane(settings: Settings) -> list[Job]:
    """Return the builds of Go programs. runc is last, because its build needs Debian packages of `other_lane`."""
    local = settings.provider == "local"
    products = ["kubernetes", "etcd", "containerd", "coredns", "helm", "runc"] if local else ["helm"]
    return [
        Job(
            f"go build {product}",
            partial(go_build.build, settings, [product]),
            go_build.COLD_SECONDS[product],
            needs=(PACKAGES,) if product == "runc" else (),
        )
        for product in products
    ]


def other_lane(settings: Settings) -> list[Job]:
    """Return the jobs that compile nothing."""
    buildah = isinstance(image_builders.choose(settings), image_builders.Buildah)
    packages = (debian.NODE_PACKAGES if settings.provider == "local" else ()) + (
        debian.IMAGE_PACKAGES if buildah else ()
    )
    jobs = [Job(PACKAGES, partial(debian.install, tuple(dict.fromkeys(packages))), 30)]
    if buildah:
        jobs.append(Job("base image", partial(debian.root_archive, settings), 75))
    recipes = [images.agent_recipe(), *(each for each in images.test_recipes() if each.target in images.DEMO_IMAGES)]
    jobs += [
        Job("virtual environment", partial(set_up, settings), 40),
        Job("images", partial(images.build, settings, recipes), 60),
    ]
    return jobs


def set_up(settings: Settings) -> None:
    """Run `make setup` with the Python of this process. make does nothing if the virtual environment is complete."""
    log = settings.cache / "log" / "setup.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["make", "--no-print-directory", "setup", f"PYTHON={sys.executable}"]
    # If `make` started this process, the new `make` must not use the job server of the outer `make`. So the new `make`
    # does not get MAKEFLAGS, MFLAGS and MAKELEVEL.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    with step("make setup"):
        run_logged(command, log, "make setup", cwd=REPOSITORY, env=environment)

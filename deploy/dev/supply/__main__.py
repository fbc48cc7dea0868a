"""Build the agent's image and write its bill of materials to build/sealci-agent.cdx.json (`make sbom`)."""

from __future__ import annotations

import sys

from deploy.dev.cluster import settings as configuration
from deploy.dev.cluster.builds import image_builders, images
from deploy.dev.cluster.console import CommandFailed, report
from deploy.dev.cluster.settings import REPOSITORY
from deploy.dev.supply import bom, image_content

TARGET = REPOSITORY / "build" / "sealci-agent.cdx.json"


def main() -> int:
    """Write the bill of materials and print its path."""
    try:
        (archive,) = images.build(configuration.read(image_builders.find_engine), [images.agent_recipe()])
    except CommandFailed as error:
        report(f"sbom: {error}")
        return 1
    bom.write(image_content.read(archive), TARGET)
    print(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())

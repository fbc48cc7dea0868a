"""Run the container engine in which kind creates nodes: the machine's own, or podman from Debian packages."""

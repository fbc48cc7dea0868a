"""Run the container engine in which kind creates its node: the machine's own engine, or podman from Debian packages."""

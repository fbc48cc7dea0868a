"""Build what a cluster needs into the cache: Go binaries, Debian packages and root file systems, container images."""

"""Build the parts of a cluster into the cache: Go binaries, Debian root file systems, container images."""

"""The checks of `sealci-agent doctor` that need the cluster. Each lives for a few requests."""

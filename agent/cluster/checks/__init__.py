"""The checks of `sealci-agent doctor` that need the cluster. Each check lives for a few requests."""

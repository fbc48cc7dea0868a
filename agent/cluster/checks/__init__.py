"""The checks of `sealci-agent doctor` that need the cluster."""

"""The command line `sealci-agent`. `main` has the group of all commands."""

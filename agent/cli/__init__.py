"""The command `sealci-agent`: one module per command."""

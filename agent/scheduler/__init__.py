"""Connections to a scheduler: `stream` is SealCI's own protocol, `classic` is the protocol of SealCI 0.2."""

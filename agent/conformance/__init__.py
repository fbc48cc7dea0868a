"""Checks of somebody's scheduler against the contract: `sealci-agent conformance`.

The tool plays agents over real streams. It runs no command and needs no cluster.
"""

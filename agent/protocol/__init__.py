"""The contract between agent and scheduler: the generated code, its translation to the domain, and gRPC set-up.

The agent, the local scheduler and `sealci-agent submit` share this package. Its functions keep no state.
"""

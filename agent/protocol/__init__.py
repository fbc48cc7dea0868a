"""The wire contract between agent and scheduler: generated code, and its translation to and from the domain."""

"""Describe what the agent's image consists of: `make sbom`."""

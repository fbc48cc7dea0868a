"""Describe what the agent's image consists of (`make sbom`), and look for known flaws in it (`make audit`)."""

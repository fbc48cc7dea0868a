"""The HTTP port of the agent: metrics, probes and the status page."""

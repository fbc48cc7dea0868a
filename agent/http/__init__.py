"""The agent's HTTP server: metrics, probes and the status page."""

"""The running agent: `wiring` builds its parts, `agent` runs them, `shutdown` ends them in order."""

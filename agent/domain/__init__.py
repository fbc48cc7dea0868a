"""The values that every part of the agent speaks in. Frozen data without I/O; nothing here imports another package."""

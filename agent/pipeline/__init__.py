"""A pipeline: its file, its values, and the events that a scheduler reports about it."""

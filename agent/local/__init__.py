"""One machine: a pipeline file, a scheduler for it, and a console. For `run`, demos and tests."""

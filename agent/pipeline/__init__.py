"""Pipelines: the pipeline file, its secret values, and the events that a scheduler reports about a pipeline."""

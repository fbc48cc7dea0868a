"""The demo: the chart on a real cluster, and a published Python package built in pods."""

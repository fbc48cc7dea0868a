"""Warm pods: pods that wait with a started image, so that an action begins at once. Each runs at most one action."""

"""Run a node as one process tree in Linux namespaces on this machine: its files, its processes and its removal."""

"""Run a process tree in namespaces of its own on this machine: the namespaces, their content, their removal."""

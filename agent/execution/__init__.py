"""Sessions: the life of an action from its arrival until its environment is gone.

This package uses neither gRPC nor Kubernetes.

`registry` owns the sessions, and `lifecycle` runs the steps of each session. `ports` declares the interfaces that other
packages implement.
"""

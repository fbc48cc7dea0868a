"""Sessions: the life of an action from its arrival until its environment is gone.

This package uses neither gRPC nor Kubernetes.

`registry` owns the sessions and `lifecycle` drives each one. `ports` declares what other packages implement.
"""

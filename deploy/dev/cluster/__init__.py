"""Run a real Kubernetes cluster for tests and demos: `python3 -m deploy.dev.cluster VERB`, in the repository's root.

The command runs before the virtual environment exists, so the package imports only the standard library.

- `providers`: the verbs, one module per kind of cluster
- `engines`: the container engines in which kind creates its node
- `node`: the process tree in namespaces that the providers `local` and `kind-offline` run on this machine
- `builds`: binaries, packages and images, built into the cache

A package imports only from packages that stand below it in this list, and from the modules of `deploy.dev.cluster`
itself.
"""

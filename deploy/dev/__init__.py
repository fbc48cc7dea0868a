"""Programs for developers of the agent.

`cluster` runs a real Kubernetes. `chart` writes the generated files of the Helm chart, and `docs` writes the generated
pages of the documentation. `pictures` makes the README's pictures.
"""

"""A real Kubernetes for tests and demos by one command: `python3 -m deploy.dev.cluster VERB`.

Standard library only, because the command runs before there is a virtual environment.
"""

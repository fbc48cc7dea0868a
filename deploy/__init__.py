"""Install, demonstrate and develop the agent. Nothing in this package is part of the installed agent.

`Dockerfile` builds the agent's image. `images` builds the images of the tests. `kind.yaml` is the configuration of a
kind cluster. `demo` is the program of `make demo`. `dev` holds the programs that developers and CI run.
"""

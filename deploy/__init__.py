"""Install, demonstrate and develop the agent. Nothing in this package is part of the installed agent.

`Dockerfile` builds the agent's image, `images` the images of the tests and `kind.yaml` a cluster of kind. `demo` is
`make demo`. `dev` holds the programs that developers and CI run.
"""

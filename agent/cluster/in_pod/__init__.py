"""Programs that the agent runs inside a pod. They import the standard library only.

Container `helper` runs all modules but `packaging` and `clone`. `packaging` belongs to the agent and sends the source
of the other modules to the container as part of a command, so they must run on Python 3.9. `clone` runs in the init
container `repository`, from the agent's image.
"""

"""Programs that the agent runs inside a pod. They import the standard library only.

`workspace`, `glob`, `collect_files` and `receive_tree` run in container `helper`. `packaging` sends the source of these
four programs with the command, so they must run on Python 3.9. `clone` runs in the init container `repository`, from
the agent's image.
"""

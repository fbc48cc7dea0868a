"""What a person at the terminal of `run` can do with an environment: upload a tree, open a shell, keep the pod."""

"""The files of a session: artifacts out of its environment, inputs of other actions into it."""

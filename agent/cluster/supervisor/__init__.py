"""The supervisor: PID 1 of container `action`. It runs the user's commands and records how each command ended."""

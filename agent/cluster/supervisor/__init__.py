"""The supervisor: PID 1 of the container `action`. It runs the user's commands and records how each one ended."""

"""The stream to the scheduler: registration, health, events out, actions in."""

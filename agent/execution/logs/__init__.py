"""The log of a session on its way to the scheduler: markers taken out, limits kept, secrets masked."""

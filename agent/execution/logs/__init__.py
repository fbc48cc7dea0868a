"""The log of a session on its way to the scheduler: remove markers, cut what is over a limit, mask secrets."""

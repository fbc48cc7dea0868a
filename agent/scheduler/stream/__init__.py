"""The agent's side of the SealCI stream: one connection, and the outbox of events that waits for acknowledgements."""

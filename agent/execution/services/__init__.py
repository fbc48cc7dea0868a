"""Services of a session: what an action may ask for, the reports about their state, and their logs."""

"""Files of a session: artifacts that leave the environment, and inputs that enter it."""

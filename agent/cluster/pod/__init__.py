"""Pure functions between an action and its pod: the manifest that the agent creates, and what a pod's status means."""

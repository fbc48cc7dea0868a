"""Pure functions between an action and its Pod: the manifest that the agent creates, and what a pod's status means."""

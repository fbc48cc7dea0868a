"""Functions without side effects that build the manifest of an action's pod, and judge the status of this pod."""

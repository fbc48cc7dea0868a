"""Functions without side effects between an action and its pod: they build the manifest that the agent creates, and
judge the pod's status.
"""

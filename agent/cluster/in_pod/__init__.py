"""Programs that the agent runs inside a pod.

They use the standard library only, because no other package is installed there.
"""

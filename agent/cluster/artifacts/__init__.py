"""The files that an action created: read out of the pod as a tar stream and checked."""

"""The reader of a pod's log: follow, resume at a cursor, and report what is missing."""

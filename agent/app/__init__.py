"""The running agent: its parts joined, its tasks started, its shutdown in order."""

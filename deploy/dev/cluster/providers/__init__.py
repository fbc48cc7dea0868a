"""Implement the verbs of the command line, one module for each kind of cluster that CLUSTER can name."""

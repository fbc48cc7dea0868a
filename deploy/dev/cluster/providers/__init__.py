"""Implement the verbs of the command line, with one module per kind of cluster that the variable CLUSTER can name."""

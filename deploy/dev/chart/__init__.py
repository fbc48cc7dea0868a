"""Write the parts of the Helm chart that follow from the agent's settings and from the comments in values.yaml."""

"""Write the files of the Helm chart that are generated from the agent's settings and the comments in values.yaml."""

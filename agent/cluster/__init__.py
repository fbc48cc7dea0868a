"""Kubernetes: environments as pods, behind the ports that `agent.execution` declares."""

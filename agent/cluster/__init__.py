"""The Kubernetes side of the agent: runs each action in a pod. Implements the interfaces of `agent.execution.ports`."""

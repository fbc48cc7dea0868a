"""Sessions: the life of an action, from its arrival to a clean cluster. Knows neither gRPC nor Kubernetes."""

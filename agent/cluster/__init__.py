"""The Kubernetes side: environments as pods. The only package that speaks to the Kubernetes API."""

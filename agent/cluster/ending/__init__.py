"""The end of a pod, brought forward: the kubelet looks at once, and the helper ends before the pod is deleted."""

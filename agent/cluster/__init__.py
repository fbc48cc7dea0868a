"""The Kubernetes side: environments as pods. The only package that speaks to the Kubernetes API."""

from __future__ import annotations

from agent.cluster import library as library

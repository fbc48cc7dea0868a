"""The type of a decoded JSON object, as the Kubernetes API and the pipeline files send them."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

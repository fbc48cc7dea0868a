"""The type of a decoded JSON object, such as an answer of the Kubernetes API."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

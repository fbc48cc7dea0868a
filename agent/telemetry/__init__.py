"""What the agent reports about itself: log, metrics and traces."""

from __future__ import annotations

# `lean_import` must run before any module of this package imports structlog.
from agent.telemetry import lean_import as lean_import

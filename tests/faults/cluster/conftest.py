"""The fixtures of the e2e tests, for the faults on a real cluster."""

from __future__ import annotations

from tests.e2e.fixtures import lab, lab_settings, namespace, own_lab

__all__ = ["lab", "lab_settings", "namespace", "own_lab"]

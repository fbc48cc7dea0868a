"""The checks of `sealci-agent doctor` whose results depend on the settings only."""

from __future__ import annotations

from agent.app.doctor import check_images
from agent.domain.check_result import Verdict
from agent.settings import PolicySettings


def test_patterns_without_a_registry_are_named_in_a_warning() -> None:
    policy = PolicySettings(images=("debian:*", "ghcr.io/acme/*", "acme/tool"))
    (found,) = check_images(policy)
    assert found.verdict is Verdict.WARNING
    assert "debian:*, acme/tool" in found.detail
    assert "ghcr.io" not in found.detail


def test_patterns_with_a_registry_and_the_default_cause_no_finding() -> None:
    assert not list(check_images(PolicySettings()))
    assert not list(check_images(PolicySettings(images=("**", "localhost/**", "*:5000/*"))))

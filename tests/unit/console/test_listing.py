"""The order in which a pipeline tree shows actions: after the actions that they need, else as in the file."""

from __future__ import annotations

from agent.console.listing import dependency_order, tree_parent


def test_actions_follow_their_needs_and_keep_the_order_of_the_file() -> None:
    needs = {"ship": ("unit", "lint"), "build": (), "unit": ("build",), "other": (), "lint": ("build",)}
    assert list(dependency_order(needs)) == ["build", "other", "unit", "lint", "ship"]


def test_needs_that_are_not_shown_are_ignored() -> None:
    assert list(dependency_order({"ship": ("unit",), "lint": ("build",)})) == ["ship", "lint"]


def test_the_parent_is_the_need_that_was_placed_last() -> None:
    assert tree_parent(("unit", "lint"), ["build", "lint", "unit"]) == "unit"
    assert tree_parent(("unit",), ["build"]) == ""

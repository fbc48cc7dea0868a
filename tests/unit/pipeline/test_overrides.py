"""The options of `sealci-agent run` that change the pipeline of the file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from agent.console import listing
from agent.pipeline import overrides, parser
from agent.pipeline.overrides import OptionError

TEXT = """
name: p
actions:
  ship: {configuration: {container: i}, commands: [x], needs: [unit, lint]}
  build: {configuration: {container: i}, commands: [x, y], env: {A: "1"}, repo: {url: "https://e.org/x"}}
  unit: {configuration: {container: i}, commands: [x], needs: [build], secrets: [S]}
  lint: {configuration: {container: i}, commands: [x], needs: [build]}
"""
ASKED = parser.parse(TEXT, "p.yaml")


def test_selected_actions_keep_their_order_and_the_needs_among_them() -> None:
    kept = overrides.select_actions(ASKED, ["unit", "ship"])
    assert [(each.name, each.needs) for each in kept.actions] == [("ship", ("unit",)), ("unit", ())]
    with pytest.raises(OptionError, match="no action 'unti', did you mean 'unit'"):
        overrides.select_actions(ASKED, ["unti"])


def test_variables_replace_those_of_the_file() -> None:
    changed = overrides.with_env(ASKED, {"A": "2", "B": ""})
    assert all(each.env == {"A": "2", "B": ""} for each in changed.actions)
    for name, why in (("S", "is a secret"), ("1x", "is not a variable name")):
        with pytest.raises(OptionError, match=why):
            overrides.with_env(ASKED, {name: "x"})


def test_secrets_are_added_to_those_of_the_file() -> None:
    changed = overrides.with_secrets(ASKED, ["T", "S"])
    assert {each.name: each.secrets for each in changed.actions}["unit"] == ("S", "T")
    for name, why in (("A", "is also set in `env`"), ("a-b", "is not a variable name")):
        with pytest.raises(OptionError, match=why):
            overrides.with_secrets(ASKED, [name])


def test_no_action_keeps_its_repository() -> None:
    assert all(each.repository is None for each in overrides.without_repositories(ASKED).actions)


def test_the_listing_is_a_tree() -> None:
    output = io.StringIO()
    Console(file=output, width=100).print(listing.listing(ASKED))
    assert [line.rstrip() for line in output.getvalue().splitlines()] == [
        "p",
        "└── build  i  2 commands",
        "    ├── unit  i  1 command",
        "    └── lint  i  1 command",
        "        └── ship  i  1 command  needs unit too",
    ]

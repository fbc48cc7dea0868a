"""Compare what the documentation states about files, commands, settings and pipeline files with the repository.

A test fails and names the page and the line if a page names something that does not exist.
"""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from agent.cli.main import cli
from agent.domain.errors import Reason
from agent.pipeline.action_keys import ARTIFACT_KEYS, REPO_KEYS, RESOURCE_KEYS
from agent.pipeline.parser import ACTION_KEYS, PIPELINE_KEYS, parse
from agent.settings import Settings
from tests.unit.pages import ROOT, Block, anchors, commands, links, spans, split, where

CHART = ROOT / "charts" / "sealci-agent"
README = ROOT / "README.md"
README_LINES = 180
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    CHART / "README.md",
]

TARGET = re.compile(r"^([a-z][a-z0-9-]*):", re.MULTILINE)
# Matches `section.key`, also with `=value` or `: value` after the key. A `*` stands for any text.
KEY = re.compile(r"([a-z][A-Za-z]*(?:\.[A-Za-z_*][A-Za-z_*0-9]*)+)(?:[=:].*)?")
VARIABLE = re.compile(r"\bSEALCI_([A-Z]+(?:__[A-Z_]+)+)\b")
FILES = (".py", ".proto", ".md", ".yaml", ".json", ".sh", ".svg", ".png", ".log", ".in")


def dead(page: Path) -> list[str]:
    wrong = []
    for number, target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or not there.is_relative_to(ROOT):
            wrong.append(f"{where(page, number)}: {target}: there is no such file")
        elif anchor and (there.suffix != ".md" or anchor not in anchors(there)):
            wrong.append(f"{where(page, number)}: {target}: there is no such heading")
    return wrong


def each_page(check: Any) -> Any:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(check)


def test_the_readme_is_one_page() -> None:
    lines = len(README.read_text(encoding="utf-8").splitlines())
    assert lines <= README_LINES, f"README.md has {lines} lines; what is beyond {README_LINES} belongs in docs/"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert not dead(page), "\n".join(dead(page))


def test_the_readme_links_to_every_page() -> None:
    linked = {(ROOT / target.partition("#")[0]).resolve() for _, target in links(README)}
    missing = [str(page.relative_to(ROOT)) for page in PAGES if page != README and page not in linked]
    assert not missing, f"README.md does not link to {', '.join(missing)}"


@each_page
def test_paths_in_the_repository_exist(page: Path) -> None:
    wrong = [
        f"{place}: {text}: there is no such file"
        for place, text in spans(page)
        if re.fullmatch(r"(agent|charts|deploy|docs|proto|tests)/[\w./*-]*|\.(ci|github)/[\w./-]+", text)
        and not any(ROOT.glob(text.rstrip("/")))
    ]
    assert not wrong, "\n".join(wrong)


# ---- commands


def misused(words: list[str]) -> str:
    """Return the mistake in the words of a `sealci-agent` command line, or "" if there is no mistake."""
    if len(words) < 2 or words[1] in ("-h", "--help"):
        return ""
    command = cli.commands.get(words[1])
    if command is None:
        return f"there is no command {words[1]!r}"
    if len(words) == 2:
        # The page only mentions the name of the command. So there are no arguments to check.
        return ""
    try:
        # The context needs its parent, because click caches the help option that a command's first context creates.
        context = command.make_context(words[1], words[2:], parent=click.Context(cli, **cli.context_settings))
    except click.exceptions.Exit:
        # `Exit` means that the command line asks for help, which is never wrong.
        return ""
    except click.ClickException as error:
        return error.format_message()
    given = [assignment.partition("=")[0] for assignment in context.params.get("assignments", ())]
    unknown = [key for key in given if key != "KEY" and not is_setting(key)]
    return f"there is no setting {', '.join(unknown)}" if unknown else ""


@each_page
def test_commands_and_options_exist(page: Path) -> None:
    wrong = [
        f"{place}: {shlex.join(words)}: {problem}"
        for place, words in commands(page)
        if words[0].rpartition("/")[2] == "sealci-agent" and (problem := misused(words))
    ]
    assert not wrong, "\n".join(wrong)


@each_page
def test_verbs_of_make_exist(page: Path) -> None:
    verbs = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    wrong = [
        f"{place}: make {word}: there is no such verb"
        for place, words in commands(page)
        if words[0] == "make"
        for word in words[1:]
        if not word.startswith("-") and "=" not in word and word not in verbs
    ]
    assert not wrong, "\n".join(wrong)


def test_every_option_of_run_scheduler_and_submit_is_explained() -> None:
    text = "\n".join(split(ROOT / "docs" / "run.md")[1])
    options = {
        f"{name} {option}"
        for name in ("run", "scheduler", "submit")
        for parameter in cli.commands[name].params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if not re.search(rf"^\| .*`{option}[` ]", text, re.MULTILINE)
    }
    assert not options, f"docs/run.md has no row for {', '.join(sorted(options))}"


def test_every_command_is_explained() -> None:
    text = (ROOT / "docs" / "run.md").read_text(encoding="utf-8")
    missing = [name for name in cli.commands if f"sealci-agent {name}" not in text]
    assert not missing, f"docs/run.md does not name {', '.join(missing)}"


# ---- pipeline files and outcomes


def pipelines() -> list[Block]:
    """Return the YAML blocks that start like a pipeline file."""
    blocks = [block for page in PAGES for block in split(page)[0] if block.language == "yaml"]
    return [block for block in blocks if re.match(r"(\s*#.*\n)*(name|configuration):", block.text)]


def test_pipeline_files_are_read() -> None:
    assert len(pipelines()) >= 3
    for block in pipelines():
        parse(block.text, where(block.page, block.line))


def test_every_key_of_a_pipeline_is_explained() -> None:
    text = "\n".join(split(ROOT / "docs" / "pipelines.md")[1])
    keys = {*PIPELINE_KEYS, *ACTION_KEYS, *REPO_KEYS, *RESOURCE_KEYS, *ARTIFACT_KEYS, "configuration.container"}
    missing = [key for key in keys - {"configuration"} if not re.search(rf"^\| `{key}` \|", text, re.MULTILINE)]
    assert not missing, f"docs/pipelines.md has no row for {', '.join(sorted(missing))}"


def test_every_reason_is_explained_under_whose_fault_it_is() -> None:
    text = "\n".join(split(ROOT / "docs" / "outcomes.md")[1])
    user, _, infrastructure = text.partition("### The user's")[2].partition("### The infrastructure's")
    found = {
        fault: set(re.findall(r"^\| `([A-Z_]+)` \|", part, re.MULTILINE))
        for fault, part in ((False, user), (True, infrastructure))
    }
    for fault, names in found.items():
        assert names == {reason.value for reason in Reason if reason.infrastructure is fault}


# ---- settings


@cache
def setting_keys() -> dict[str, bool]:
    """Return all keys of settings and sections. The value of a key is True if the user may choose the keys below it."""
    found: dict[str, bool] = {}

    def add(model: type[BaseModel], before: str) -> None:
        for name, field in model.model_fields.items():
            kind = field.annotation
            found[before + name] = "dict" in str(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                add(kind, f"{before}{name}.")

    add(Settings, "")
    return found


@cache
def value_keys() -> dict[str, bool]:
    """Return all keys of the chart's values. The value of a key is True if the user may choose the keys below it."""
    found: dict[str, bool] = {}

    def add(values: dict[str, Any], before: str) -> None:
        for name, value in values.items():
            found[before + name] = value == {}
            if isinstance(value, dict):
                add(value, f"{before}{name}.")

    add(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")), "")
    return found


def within(key: str, keys: dict[str, bool]) -> bool:
    """Return whether `key` matches one of `keys`, or is below one of `keys` whose value is True.

    `key` may be a glob.
    """
    parts = key.split(".")
    above = (".".join(parts[:length]) for length in range(1, len(parts)))
    return any(fnmatchcase(each, key) for each in keys) or any(keys.get(each) for each in above)


def is_setting(key: str) -> bool:
    return within(key, setting_keys())


def is_module(key: str) -> bool:
    """Return whether a dotted name is a module or package of the agent, or a name that occurs in a module."""
    parts = key.removeprefix("agent.").split(".")
    place = ROOT.joinpath("agent", *parts)
    if place.is_dir() or place.with_suffix(".py").is_file():
        return True
    module = place.parent.with_suffix(".py")
    return module.is_file() and bool(re.search(rf"\b{parts[-1]}\b", module.read_text(encoding="utf-8")))


def is_pipeline_key(key: str) -> bool:
    section, _, rest = key.partition(".")
    return section in ACTION_KEYS and rest in (*REPO_KEYS, *RESOURCE_KEYS, *ARTIFACT_KEYS, "container")


@each_page
def test_settings_and_values_exist(page: Path) -> None:
    sections = {each.partition(".")[0] for each in (*setting_keys(), *value_keys())}
    wrong = []
    for place, text in spans(page):
        found = KEY.fullmatch(text)
        if not found or found[1].endswith(FILES) or found[1].partition(".")[0] not in sections:
            continue
        key = found[1]
        if not (is_setting(key) or within(key, value_keys()) or is_pipeline_key(key) or is_module(key)):
            wrong.append(f"{place}: {key}: there is no such setting or value")
    wrong += [
        f"{where(page, number)}: SEALCI_{name}: there is no such setting"
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        for name in VARIABLE.findall(line)
        if not is_setting(name.lower().replace("__", "."))
    ]
    assert not wrong, "\n".join(wrong)


@each_page
def test_values_given_to_helm_exist(page: Path) -> None:
    wrong = [
        f"{place}: --set {after}: there is no such value"
        for place, words in commands(page)
        if words[0] == "helm"
        for word, after in pairwise(words)
        if word == "--set" and not within(after.partition("=")[0], value_keys())
    ]
    assert not wrong, "\n".join(wrong)

"""The key `inputs` of pipeline files: what is read, what is refused, and which files a rule selects."""

from __future__ import annotations

import pytest

from agent.domain.actions import Key
from agent.pipeline import parser
from agent.pipeline.file_errors import PipelineFileError
from agent.pipeline.inputs import InputRule, select
from agent.pipeline.overrides import OptionError, select_actions

STORED = [b"dist/a.whl", b"dist/b.whl", b"dist/sub/c.whl", b"report.xml", b"dist/\xff.bin"]


def pipeline(inputs: str, *, build: str = "") -> str:
    return (
        f"actions:\n"
        f"  build: {{configuration: {{container: i}}, commands: [x]{build}}}\n"
        f"  lint: {{configuration: {{container: i}}, commands: [x]}}\n"
        f"  test: {{configuration: {{container: i}}, commands: [x], needs: [lint], inputs: {inputs}}}\n"
    )


def test_an_action_needs_the_actions_of_its_inputs() -> None:
    text = pipeline('[{from: build, paths: ["dist/*.whl"], to: wheels/}, {from: lint, optional: yes}, {from: build}]')
    plan = parser.parse(text, "p.yaml").actions[2]
    assert plan.needs == ("lint", "build")
    assert plan.inputs == (
        InputRule("build", ("dist/*.whl",), "wheels"),
        InputRule("lint", optional=True),
        InputRule("build"),
    )
    assert plan.action(Key("a"), {}).inputs == (), "the scheduler adds the files"


@pytest.mark.parametrize(
    ("inputs", "build", "message"),
    [
        ("build", "", "must be a list of mappings with from, paths, to, optional"),
        ("[{paths: [a]}]", "", "`from` is missing"),
        ("[{from: biuld}]", "", "there is no action 'biuld', did you mean 'build'?"),
        ("[{from: test}]", "", "the needs form a circle: test -> test"),
        ("[{from: build}]", ", needs: [test]", "the needs form a circle: build -> test -> build"),
        ("[{from: build}]", ", artifacts: none", "build keeps no files when it succeeds"),
        ("[{from: build}]", ", artifacts: {when: failure}", "build keeps no files when it succeeds"),
        ("[{from: build, to: ../x}]", "", "must be a folder within the workspace"),
        ("[{from: build, to: /x}]", "", "must be a folder within the workspace"),
        ("[{from: build, paths: [/x]}]", "", "must be within the workspace"),
        ("[{from: build, into: x}]", "", "there is no such key"),
        ("[{from: build, optional: 3}]", "", "inputs[1].optional"),
        (f"[{', '.join(['{from: build}'] * 21)}]", "", "has 21 inputs; at most 20 are allowed"),
    ],
)
def test_a_wrong_input_is_refused(inputs: str, build: str, message: str) -> None:
    with pytest.raises(PipelineFileError) as refusal:
        parser.parse(pipeline(inputs, build=build), "p.yaml")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("paths", "to", "found"),
    [
        ((), None, dict(zip(STORED, STORED, strict=True))),
        ((), "", dict(zip(STORED, STORED, strict=True))),
        (("dist/*.whl",), None, {b"dist/a.whl": b"dist/a.whl", b"dist/b.whl": b"dist/b.whl"}),
        (("dist/*.whl",), "w", {b"dist/a.whl": b"a.whl", b"dist/b.whl": b"b.whl"}),
        (("dist/sub/c.whl",), "w", {b"dist/sub/c.whl": b"c.whl"}),
        (("**/c.whl",), "w", {b"dist/sub/c.whl": b"dist/sub/c.whl"}),
        (("dist/sub",), "w", {b"dist/sub/c.whl": b"sub/c.whl"}),
        (("dist/sub/",), "w", {b"dist/sub/c.whl": b"c.whl"}),
        (("dist/s*/",), "w", {b"dist/sub/c.whl": b"sub/c.whl"}),
        (("dist/*.bin", "*.xml"), "w", {b"dist/\xff.bin": b"\xff.bin", b"report.xml": b"report.xml"}),
    ],
)
def test_a_folder_replaces_the_part_before_the_first_wildcard(
    paths: tuple[str, ...], to: str | None, found: dict[bytes, bytes]
) -> None:
    selected, unmatched = select(InputRule("build", paths, to), STORED)
    assert (dict(selected), unmatched) == (found, [])


def test_globs_without_a_match_are_named() -> None:
    assert select(InputRule("build", ("no*", "dist/a.whl", "x"), "w"), STORED) == (
        [(b"dist/a.whl", b"a.whl")],
        ["no*", "x"],
    )
    assert select(InputRule("build"), []) == ([], ["**"])


def test_a_selection_of_actions_keeps_the_actions_of_inputs() -> None:
    found = parser.parse(pipeline("[{from: build}, {from: lint, optional: true}]"), "p.yaml")
    with pytest.raises(OptionError, match="--only: test takes files of build; name build too"):
        select_actions(found, ["test"])
    _, test = select_actions(found, ["test", "build"]).actions
    assert (test.needs, test.inputs) == (("build",), (InputRule("build"),))

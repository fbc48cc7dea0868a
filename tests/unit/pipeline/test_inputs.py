"""The key `inputs` of pipeline files: what is read, what is refused, and which files a rule selects."""

from __future__ import annotations

import pytest

from agent.domain.actions import Key
from agent.pipeline import parser
from agent.pipeline.file_errors import PipelineFileError
from agent.pipeline.inputs import InputRule, select
from agent.pipeline.overrides import OptionError, select_actions
from agent.pipeline.structure.conditions import Condition

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
        (
            "[{from: build}]",
            ", matrix: {X: [a, b]}",
            "p.yaml:4: actions.test.inputs[1].from: build has 2 variants, name one of them: build-a, build-b",
        ),
        ("[{from: build}]", ", matrix: {X: []}", "p.yaml:2: actions.build.matrix.X: must have at least one value"),
        ("[{from: build-b}]", ", needs: [test], matrix: {X: [a, b]}", "form a circle: build-b -> test -> build-b"),
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


def test_inputs_name_variants_of_a_matrix() -> None:
    one, two = ", matrix: {X: [a]}", ", matrix: {X: [a, b]}"
    for build, source, needs in ((one, "build", "build-a"), (one, "build-a", "build-a"), (two, "build-b", "build-b")):
        test = parser.parse(pipeline(f"[{{from: {source}}}]", build=build), "p.yaml").actions[-1]
        assert (test.needs, [rule.source for rule in test.inputs]) == (("lint", needs), [needs])


VARIANTS = """
defaults: {configuration: {container: i}}
actions:
  build: {matrix: {X: [a, b]}, commands: [x]}
  test:
    matrix: {X: [a, b]}
    commands: [x]
    inputs: [{from: "build-${X}", paths: ["dist/${X}"], to: "in/${X}"}]
  report: {commands: [x], when: always, inputs: [{from: test-a, optional: true}]}
"""


def test_each_variant_takes_files_by_the_values_of_its_matrix() -> None:
    found = parser.parse(VARIANTS, "p.yaml")
    assert {each.name: (each.needs, each.inputs) for each in found.actions[2:4]} == {
        f"test-{x}": ((f"build-{x}",), (InputRule(f"build-{x}", (f"dist/{x}",), f"in/{x}"),)) for x in "ab"
    }
    report = found.actions[4]
    assert (report.when, report.needs, report.entry) == (Condition.ALWAYS, ("test-a",), "report")
    # The name of an action with a matrix selects all its variants, which are the sources of inputs then.
    chosen = select_actions(found, ["build", "test-b"]).actions
    assert [(each.name, len(each.inputs)) for each in chosen] == [("build-a", 0), ("build-b", 0), ("test-b", 1)]
    with pytest.raises(OptionError, match="--only: test-a takes files of build-a; name build-a too"):
        select_actions(found, ["build-b", "test"])
    (report,) = select_actions(found, ["report"]).actions
    assert (report.needs, report.inputs) == ((), ())


def test_a_wrong_input_of_an_action_with_a_matrix_is_one_problem() -> None:
    with pytest.raises(PipelineFileError) as refusal:
        parser.parse(VARIANTS.replace('"build-${X}"', "build"), "p.yaml")
    assert [each.message.partition(": ")[0] for each in refusal.value.problems] == ["p.yaml:8"]


def test_defaults_hold_no_inputs() -> None:
    with pytest.raises(PipelineFileError, match=r"defaults\.inputs: there is no such key"):
        parser.parse(VARIANTS.replace("defaults: {", "defaults: {inputs: [{from: build-a}], "), "p.yaml")

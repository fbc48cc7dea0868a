"""Globs match paths as in GitLab's `artifacts:paths`."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from agent.glob import compile_folders, compile_globs
from tests.fakes.steps import within
from tests.unit.cluster.in_pod.regex_globs import regexes


@pytest.mark.parametrize(
    ("glob", "matches", "others"),
    [
        ("a.txt", ["a.txt", "a.txt/below"], ["b/a.txt", "aatxt", "a.txt2"]),
        ("*.txt", ["a.txt", ".txt", "new\nline.txt"], ["b/a.txt", "a.txt.gz"]),
        ("**/*.txt", ["a.txt", "b/a.txt", "b/c/a.txt"], ["a.txtx"]),
        ("dist/", ["dist/a", "dist/a/b"], ["dist", "x/dist/a"]),
        ("dist", ["dist", "dist/a"], ["distant", "x/dist"]),
        ("dist/**", ["dist/a", "dist/a/b"], ["dist"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b", "a/b/c"], ["ab", "a/xb"]),
        ("**", ["a", "a/b"], []),
        ("", ["a", "a/b"], []),
        (".", ["a", "a/b"], []),
        ("./a", ["a"], ["b"]),
        ("/a", ["a"], ["b/a"]),
        ("a?c", ["abc"], ["a/c", "ac", "abbc"]),
        ("[ab]c", ["ac", "bc"], ["cc", "abc"]),
        ("[!ab]c", ["cc"], ["ac", "/c"]),
        ("[]]", ["]"], ["[]]"]),
        ("[a-c]", ["b"], ["d", "-"]),
        ("a[/]b", ["a[/]b"], ["a/b"]),
        ("[x", ["[x"], ["x"]),
        ("[z-a]", ["[z-a]"], ["b"]),
        (r"\*", ["*"], ["a"]),
        ("a.b+c(d)", ["a.b+c(d)"], ["aab+c(d)"]),
        ("../x", [], ["x", "a/x"]),
    ],
)
def test_globs(glob: str, matches: list[str], others: list[str]) -> None:
    (pattern,) = compile_globs([glob])
    assert [path for path in matches if not pattern.matches(path.split("/"))] == []
    assert [path for path in others if pattern.matches(path.split("/"))] == []
    for path in matches:
        folders = path.split("/")[:-1]
        assert all(one.matches([folder]) for one, folder in zip(compile_folders(glob), folders, strict=False))


@given(
    glob=st.text("ab*?[]!^-\\/.\n", max_size=9),
    path=st.text("ab]-/\\\n", min_size=1, max_size=9),
)
@example(glob="**/a/**/b", path="a/a/b/b/a")
@settings(max_examples=500, deadline=None)
def test_a_glob_means_the_same_as_its_regular_expression(glob: str, path: str) -> None:
    names = [name for name in path.split("/") if name]
    assume(names)
    (regex,), (pattern,) = regexes([glob]), compile_globs([glob])
    assert pattern.matches(names) == bool(regex.fullmatch("/".join(names)))


@pytest.mark.parametrize(
    ("glob", "path"),
    [
        ("*a" * 12 + "b", "a" * 200),
        ("a*" * 100 + "b", "a" * 255),
        ("*?" * 120 + "b", "a" * 255),
        ("*/" * 200 + "x", "a/" * 2000 + "a"),
        ("**/a/" * 40 + "b", "a/" * 2000 + "a"),
        ("**/*a*a*/" * 20 + "b", ("a" * 40 + "/") * 100 + "a"),
    ],
)
def test_no_glob_takes_more_steps_than_its_length_times_the_path(glob: str, path: str) -> None:
    (pattern,) = compile_globs([glob])
    names = path.split("/")
    assert not within(12 * len(glob) * len(path), lambda: pattern.matches(names))
    # `within` does not count the steps inside the regular expressions of `pattern`. So none of them may repeat a part,
    # because a repetition could backtrack.
    pieces = [piece for part in pattern.parts if part is not None for piece, _ in part.pieces]
    parse = re._parser.parse  # type: ignore[attr-defined]  # noqa: SLF001 - no public name shows the parts of an expression
    assert {str(kind) for piece in pieces for kind, _ in parse(piece.pattern)} <= {"LITERAL", "ANY", "IN"}

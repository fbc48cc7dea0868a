"""Globs match paths as in GitLab's `artifacts:paths`."""

from __future__ import annotations

import pytest

from agent.cluster.in_pod.glob import compile_folders, compile_globs


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
    assert [path for path in matches if not pattern.fullmatch(path)] == []
    assert [path for path in others if pattern.fullmatch(path)] == []
    for path in matches:
        folders = path.split("/")[:-1]
        assert all(one.fullmatch(folder) for one, folder in zip(compile_folders(glob), folders, strict=False))
